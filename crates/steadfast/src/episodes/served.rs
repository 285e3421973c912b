//! Programs in Rust as an HTTP end point, so that agents run their episodes: `steadfast episode deploy NAME --http URL`.
//!
//! An episode is one POST: the task as JSON, answered by the outcome as JSON, in the form that all programs by HTTP speak. A
//! program that fails, or panics, says so in its answer, and nothing has changed. What is no task is refused with 400. It keeps
//! nothing between two requests: the state comes with each.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::{Value, json};
use steadfast_proto::episode::{Event, EventId, Next, Outcome, Outgoing, Task, Wait};
use steadfast_proto::exchange::{Blob, Name};
use steadfast_proto::time::Time;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::typed::{Durable, run};

/// How many bytes of one task are read.
const TASK_BYTES_MAX: usize = 64 << 20;
/// How many connections are served at the same time; others wait.
const CONNECTIONS_MAX: usize = 256;
/// How long the head of a request may take.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// How soon a connection is accepted again when that failed, as it does without file descriptors.
const AGAIN: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
struct TaskForm {
    version: u32,
    instance: String,
    episode: u64,
    now_ms: u64,
    event: EventForm,
    state: Value,
}

#[derive(Deserialize)]
struct EventForm {
    kind: String,
    source: Option<String>,
    correlation: Option<String>,
    payload: Value,
}

/// Runs the program's episodes for whoever asks at the listener, until this future is dropped. Episodes run on the threads of
/// the runtime: what takes long holds up others.
pub async fn serve(listener: TcpListener, program: impl Durable) -> Infallible {
    let (program, room) = (Arc::new(program), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    loop {
        let place = Arc::clone(&room).acquire_owned().await;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "no connection is accepted");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        // Answers are small, and each is waited for.
        let _ = stream.set_nodelay(true);
        let program = Arc::clone(&program);
        let service = service_fn(move |request| {
            let program = Arc::clone(&program);
            async move { Ok::<_, Infallible>(answered(&*program, request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke off");
            }
            drop(place);
        });
    }
}

async fn answered(program: &impl Durable, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let body = Limited::new(request.into_body(), TASK_BYTES_MAX).collect().await;
    let task = body.map_err(|error| error.to_string()).and_then(|body| task(&body.to_bytes()));
    let (status, said) = match task {
        Ok(task) => (StatusCode::OK, outcome(program, &task)),
        Err(why) => (StatusCode::BAD_REQUEST, json!({ "error": why })),
    };
    let mut response = Response::new(Full::new(Bytes::from(said.to_string())));
    *response.status_mut() = status;
    response
}

fn task(body: &[u8]) -> Result<Task, String> {
    let form: TaskForm = serde_json::from_slice(body)
        .map_err(|error| format!("this is no task of an episode, as a Steadfast agent posts it: {error}"))?;
    let name = |text: String| Name::parse(&text).map_err(|error| error.to_string());
    Ok(Task {
        name: name(form.instance)?,
        version: form.version,
        run: 0,
        episode: form.episode,
        state: bytes(&form.state),
        event: Event {
            id: EventId::Request(0),
            kind: form.event.kind.as_str().into(),
            source: form.event.source.map(name).transpose()?,
            correlation: form.event.correlation.as_deref().map(Into::into),
            payload: bytes(&form.event.payload),
        },
        now: Time::from_nanos(form.now_ms.saturating_mul(1_000_000)),
    })
}

/// No bytes are `null`.
fn bytes(value: &Value) -> Blob {
    if value.is_null() { Blob::empty() } else { Blob::from(value.to_string().into_bytes()) }
}

fn outcome(program: &impl Durable, task: &Task) -> Value {
    let ran = catch_unwind(AssertUnwindSafe(|| run(program, task)));
    let said = ran.unwrap_or_else(|_| Err("the program panicked; its log says where".to_owned()));
    said.and_then(|outcome| written(&outcome, task.now)).unwrap_or_else(|why| json!({ "fail": why }))
}

fn written(outcome: &Outcome, now: Time) -> Result<Value, String> {
    let mut said = BTreeMap::from([("state", any(&outcome.state)?)]);
    let messages = outcome.messages.iter().map(message).collect::<Result<Vec<Value>, String>>()?;
    said.insert("messages", messages.into());
    if let Some(answer) = &outcome.answer {
        said.insert("answer", any(answer)?);
    }
    match &outcome.next {
        Next::Wait(wait) => said.insert("wait", waits(wait, now)),
        Next::End(answer) => said.insert("end", any(answer)?),
    };
    Ok(json!(said))
}

fn message(message: &Outgoing) -> Result<Value, String> {
    let Outgoing { to, kind, correlation, payload, begins, within } = message;
    Ok(json!({
        "to": to.as_str(),
        "kind": &**kind,
        "correlation": correlation.as_deref(),
        "payload": any(payload)?,
        "begins": begins,
        "within_ms": within.map(milliseconds),
    }))
}

fn waits(wait: &Wait, now: Time) -> Value {
    let any = wait.any.iter().map(|one| {
        json!({
            "kind": one.kind.as_deref(),
            "source": one.source.as_ref().map(Name::as_str),
            "correlation": one.correlation.as_deref(),
            "filter": one.filter.as_deref(),
        })
    });
    let any: Vec<Value> = any.collect();
    json!({ "any": any, "within_ms": wait.deadline.map(|deadline| milliseconds(deadline.since(now))) })
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn any(bytes: &Blob) -> Result<Value, String> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes).map_err(|error| format!("what the program wrote is no JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::super::typed::{Context, Then};
    use super::*;

    #[derive(Default, Serialize, Deserialize)]
    struct Sum(u64);

    #[derive(Serialize, Deserialize)]
    #[serde(tag = "kind", content = "payload", rename_all = "lowercase")]
    enum Told {
        Start,
        Add(u64),
        Panic,
        Undeliverable(String),
    }

    struct Adder;

    impl Durable for Adder {
        type State = Sum;
        type Told = Told;

        fn episode(&self, sum: &mut Sum, told: Told, context: &mut Context<'_>) -> Result<Then, String> {
            match told {
                Told::Start => {}
                Told::Add(0) => return Err("nothing is to be added".to_owned()),
                Told::Add(more) => {
                    sum.0 += more;
                    context.send("log/1", &Told::Add(sum.0))?;
                }
                Told::Undeliverable(why) => return Then::end(&why),
                Told::Panic => panic!("as it was told"),
            }
            Ok(Then::one_of(&["add"]).or_after(Duration::from_secs(2), context))
        }
    }

    fn told(state: &Value, kind: &str, payload: &Value) -> Value {
        let event = json!({ "kind": kind, "source": null, "correlation": null, "payload": payload });
        let body = json!({
            "program": "sum", "version": 1, "instance": "sum/1", "episode": 2, "now_ms": 5, "event": event, "state": state,
        });
        outcome(&Adder, &task(body.to_string().as_bytes()).expect("a task"))
    }

    #[test]
    fn an_episode_is_a_function_of_its_task_and_says_its_outcome_as_json() {
        let waits = json!({
            "any": [{ "kind": "add", "source": null, "correlation": null, "filter": null }],
            "within_ms": 2_000,
        });
        let message = json!({
            "to": "log/1", "kind": "add", "correlation": null, "payload": 12, "begins": false, "within_ms": null,
        });
        assert_eq!(
            told(&json!(7), "add", &json!(5)),
            json!({ "state": 12, "messages": [message], "wait": waits })
        );
        assert_eq!(
            told(&Value::Null, "start", &Value::Null),
            json!({ "state": 0, "messages": [], "wait": waits })
        );
    }

    #[test]
    fn what_fails_says_why_and_nothing_else() {
        assert_eq!(told(&json!(7), "add", &json!(0)), json!({ "fail": "nothing is to be added" }));
        assert_eq!(
            told(&json!(7), "panic", &Value::Null),
            json!({ "fail": "the program panicked; its log says where" })
        );
        let why = told(&json!(7), "other", &Value::Null)["fail"].to_string();
        assert!(why.contains("other is not what it understands"), "{why}");
        let refused = task(b"{}").expect_err("no task");
        assert!(refused.starts_with("this is no task of an episode"), "{refused}");
    }

    #[test]
    fn a_message_that_came_back_is_told_with_its_sentence() {
        let said = told(&json!(7), "undeliverable", &json!("there is no such program"));
        assert_eq!(said["end"], json!("there is no such program"));
    }
}
