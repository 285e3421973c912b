//! The adapters against real servers: which answers are final, and that a repetition changes nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::StatusCode as Status;
use axum::routing::any;
use serde_json::{Value, json};
use steadfast_proto::exchange::Name;

use super::*;
use crate::bed::postgresql::Postgresql;
use crate::config::episodes::{PostgresqlAddress, PostgresqlConfig};

fn payload(order: &Value) -> Blob {
    Blob::from(order.to_string().into_bytes())
}

fn stream(from: &str) -> Stream {
    let name = |text: &str| Name::parse(text).unwrap();
    Stream { from: name(from), epoch: 7, to: name("effect/http") }
}

#[test]
fn each_message_has_an_id_of_its_own_and_keeps_it() {
    let all = [id(&stream("a/1"), 1), id(&stream("a/1"), 2), id(&stream("a/2"), 1)];
    assert_eq!(all[0], id(&stream("a/1"), 1));
    assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2], "{all:?}");
    assert!(all.iter().all(|id| id.len() == 36 && id.is_ascii()));
}

#[test]
fn an_order_that_can_not_be_meant_is_refused_with_the_field() {
    let http = |order: Value| http::Order::read(&payload(&order)).unwrap_err();
    for (order, said) in [
        (json!({}), "missing field `url`"),
        (json!({"url": "nonsense"}), "url: "),
        (json!({"url": "http://a:b@c/"}), "password"),
        (json!({"url": "http://c/", "method": "BREW"}), "method: \"BREW\""),
        (json!({"url": "http://c/", "headers": {"Idempotency-Key": "x"}}), "leave it out"),
        (json!({"url": "http://c/", "headers": {"a b": "x"}}), "no header's name"),
        (json!({"url": "http://c/", "reply": "cancel"}), "reply: \"cancel\""),
        (json!({"url": "http://c/", "timeout_ms": 1}), "100 to 300000"),
    ] {
        assert!(http(order.clone()).contains(said), "{order}: {}", http(order.clone()));
    }
    assert!(!http(json!({"url": "http://c/", "headers": {"x": "secret\n"}})).contains("secret"));
    let event = |order: Value| event::Order::read(&payload(&order)).unwrap_err();
    assert!(event(json!({"type": "user.x", "fields": {"a": [1]}})).contains("fields: \"a\""));
    assert!(event(json!({"type": "user.x", "fields": {"_message": "1"}})).contains("no field's name"));
    assert!(event(json!({"type": "disk.usage"})).contains("user."));
    let statement = postgresql::Order::read(&payload(&json!({"connection": "shop"}))).unwrap_err();
    assert!(statement.contains("missing field `statement`"), "{statement}");
}

type Keys = Arc<Mutex<Vec<(String, String)>>>;

async fn answer(
    State(keys): State<Keys>,
    Path(status): Path<u16>,
    headers: HeaderMap,
    body: String,
) -> (Status, HeaderMap, String) {
    let header = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
    keys.lock().unwrap().push((header("idempotency-key"), header("content-type")));
    let after = (status == 429).then(|| ("retry-after".parse().unwrap(), "7".parse().unwrap()));
    let body = if status == 202 { "x".repeat(100_000) } else { body };
    (Status::from_u16(status).unwrap(), after.into_iter().collect(), body)
}

#[test]
fn a_request_carries_its_id_and_its_answer_is_final_or_not() {
    crate::commands::block_on(async {
        let keys = Keys::default();
        let router = Router::new().route("/{status}", any(answer)).with_state(Arc::clone(&keys));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let http = http::Http::default();
        let ask = async |status: u16| {
            let order =
                json!({"url": format!("http://{address}/{status}"), "body": {"a": 1}, "reply": "done"});
            http.carry_out(&http::Order::read(&payload(&order)).unwrap(), "the-id").await
        };
        let Ended::Done(Some(reply)) = ask(200).await else { panic!("a success") };
        assert_eq!(
            serde_json::from_slice::<Value>(&reply.payload).unwrap(),
            json!({"status": 200, "body": {"a": 1}})
        );
        let Ended::Done(Some(reply)) = ask(202).await else { panic!("a success, whatever its length") };
        let cut = json!({"status": 202, "body": null, "cut": true});
        assert_eq!(serde_json::from_slice::<Value>(&reply.payload).unwrap(), cut);
        for status in [400, 404, 422, 301] {
            assert!(matches!(ask(status).await, Ended::Never(_)), "{status}");
        }
        for status in [408, 409, 425, 500, 503] {
            assert!(matches!(ask(status).await, Ended::Later { after: None, .. }), "{status}");
        }
        let wanted = Some(Duration::from_secs(7));
        assert!(matches!(ask(429).await, Ended::Later { after, .. } if after == wanted));
        assert!(keys.lock().unwrap().iter().all(|(key, kind)| key == "the-id" && kind == "application/json"));
        server.abort();
        let _ = server.await;
        let Ended::Later { why, .. } = ask(200).await else { panic!("nobody is there") };
        assert!(why.contains("does not answer"), "{why}");
    })
    .unwrap();
}

#[test]
fn a_statement_is_carried_out_once_for_its_id_and_answered_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Postgresql::start(folder.path()).unwrap();
    let address = PostgresqlAddress(server.address().parse().unwrap());
    let shop = PostgresqlConfig { address, password_file: None, ca: None };
    let config = EpisodesConfig {
        postgresql: BTreeMap::from([("shop".to_owned(), shop)]),
        ..EpisodesConfig::default()
    };
    let connections = postgresql::Connections::new(&config);
    let order = |statement: &str, parameters: Value| {
        let order =
            json!({"connection": "shop", "statement": statement, "parameters": parameters, "reply": "done"});
        postgresql::Order::read(&payload(&order)).unwrap()
    };
    let rows = |count: i64| {
        let payload = payload(&json!({"rows": count}));
        Ended::Done(Some(Reply { kind: "done".into(), payload }))
    };
    crate::commands::block_on(async {
        let ask = async |statement: &str, parameters: Value, id: &str| {
            connections.carry_out(&order(statement, parameters), id).await
        };
        let make = "create table t (a int primary key, b text, c jsonb, d bool, e numeric)";
        assert_eq!(ask(make, json!([]), "make").await, rows(0));
        let insert = "insert into t values ($1, $2, $3, $4, $5), ($1 + 1, $2, $3, $4, $5)";
        let parameters = json!([1, "x", {"y": [null]}, true, 1.5]);
        for _ in 0..3 {
            assert_eq!(ask(insert, parameters.clone(), "one").await, rows(2), "the same answer each time");
        }
        assert_eq!(ask("update t set b = $1 where a > 0", json!([null]), "two").await, rows(2));
        let count = "update t set b = 'all' where (select count(*) from t) = 2 and b is null";
        assert_eq!(ask(count, json!([]), "three").await, rows(2), "there are no more than two rows");
        for (statement, parameters) in [
            (insert, parameters.clone()),
            ("insert into nowhere values (1)", json!([])),
            ("nonsense", json!([])),
            ("delete from t where a = $1", json!(["x"])),
            ("delete from t where a = $1", json!([])),
        ] {
            assert!(matches!(ask(statement, parameters, "wrong").await, Ended::Never(_)), "{statement}");
        }
        assert_eq!(ask("delete from t", json!([]), "wrong").await, rows(2), "what failed was not done");
        let together = ["insert into t select 7 from pg_sleep(0.2)"; 2];
        let [first, second] = together.map(|statement| ask(statement, json!([]), "together"));
        let (first, second) = tokio::join!(first, second);
        assert_eq!((first, second), (rows(1), rows(1)), "done once, and said twice");
        assert_eq!(ask("delete from t", json!([]), "last").await, rows(1));
        assert_eq!(ask("insert into t values (8)", json!([]), "more").await, rows(1));
    })
    .unwrap();
    server.kill();
    crate::commands::block_on(async {
        let ended = connections.carry_out(&order("delete from t", json!([])), "four").await;
        assert!(matches!(ended, Ended::Later { .. }), "{ended:?}");
    })
    .unwrap();
    server.go_on().unwrap();
    crate::commands::block_on(async {
        assert_eq!(connections.carry_out(&order("delete from t", json!([])), "four").await, rows(1));
    })
    .unwrap();
}
