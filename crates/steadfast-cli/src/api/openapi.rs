//! The OpenAPI document, generated from the types; `docs/reference/openapi.json` is what this prints.
//!
//! The list of paths stands here once; a test compares it with the router.

use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItemBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApiBuilder, PathsBuilder, Ref, RefOr, Required,
    ResponseBuilder, ResponsesBuilder, Schema,
};
use utoipa::{PartialSchema, ToSchema};

use super::{
    device_types, episode_types, event_types, exchange_types, group_types, link_types, page_types,
    token_types, types, view_types,
};

/// One operation of the API.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// `get`, `post`, `put` or `delete`.
    pub method: &'static str,
    /// The path with its parameters in braces.
    pub path: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// The type of its body.
    pub body: Option<&'static str>,
    /// Its query parameters.
    pub query: &'static [Parameter],
    /// The type of its answer, and how it comes.
    pub answer: Answer,
}

/// One parameter of a query; all can be left out.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// What it is called.
    pub name: &'static str,
    /// What can be written for it.
    pub kind: Kind,
}

/// What can be written for a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// A whole number from 0 to 2^32 - 1.
    Small,
    /// A whole number from 0 on.
    Count,
    /// `true` or `false`.
    Flag,
}

/// How an answer comes.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// One value.
    One(&'static str),
    /// One value or null.
    Maybe(&'static str),
    /// A list.
    Many(&'static str),
    /// Server-sent events, one value each.
    Events(&'static str),
    /// Bytes for a file.
    File,
    /// Text in the format of OpenMetrics.
    Metrics,
    /// Another protocol on the same connection.
    Upgrade,
}

/// What can be asked of links.
const LINKS_QUERY: &[Parameter] = &[
    text("peer"),
    text("network"),
    text("state"),
    text("changes"),
    count("since"),
    text("wait"),
    text("node"),
];

/// What can be asked of views.
const VIEWS_QUERY: &[Parameter] = &[small("limit"), count("since")];

/// What stands in paths.
const IN_PATHS: [(&str, &str); 3] = [
    ("name", "the name of what the path is about"),
    ("program", "the program of the instance"),
    ("key", "the key of the instance; a slash in it is written %2F"),
];

/// With what status something is refused, and what that means.
const REFUSALS: [(&str, &str); 8] = [
    ("400", "the request is wrong"),
    ("401", "from outside: neither a token nor a session that is known"),
    ("403", "from outside: the role does not allow it"),
    ("404", "what it is about is not there"),
    ("409", "something else stands against it"),
    ("422", "refused"),
    ("429", "too many of them are there already"),
    ("503", "not possible now; try again"),
];

/// Every operation.
pub const OPERATIONS: &[Operation] = &[
    get("/v1/status", "How the cluster stands, seen from this node", Answer::One("Status")),
    get("/v1/nodes", "Every node", Answer::Many("Node")),
    Operation {
        query: LINKS_QUERY,
        ..get("/v1/links", "This node's links, or what changed of them", Answer::One("LinkReport"))
    },
    Operation {
        query: LINKS_QUERY,
        ..get("/v1/links/events", "The links now and after each change", Answer::Events("LinkReport"))
    },
    Operation {
        query: &[count("since"), text("wait"), text("node")],
        ..get("/v1/verdicts", "The verdicts that hold on this node", Answer::One("VerdictReport"))
    },
    Operation {
        query: &[count("since"), text("node")],
        ..get(
            "/v1/verdicts/events",
            "The verdicts now and after each change",
            Answer::Events("VerdictReport"),
        )
    },
    Operation {
        query: VIEWS_QUERY,
        ..get("/v1/views", "The views that are kept, oldest first", Answer::Many("ViewRecord"))
    },
    Operation {
        query: VIEWS_QUERY,
        ..get("/v1/views/events", "Each view as it is committed", Answer::Events("ViewRecord"))
    },
    Operation {
        query: &[text("filter"), text("since"), text("after")],
        ..get("/v1/events", "What happens in the cluster, as it happens", Answer::Events("CloudEvent"))
    },
    post("/v1/events", "Tell that something happened", "EmitRequest", Answer::One("Done")),
    get("/v1/events/status", "What this node does for events", Answer::One("EventsStatus")),
    get("/v1/catalog/backup", "The catalog as of now, as the bytes of a backup", Answer::File),
    get("/v1/devices", "Every block device that has a name or is seen", Answer::One("DeviceReport")),
    post("/v1/devices/name", "Give a device a name", "NameDevice", Answer::One("Device")),
    post("/v1/devices/rename", "Give a device another name", "RenameDevice", Answer::One("Device")),
    post("/v1/devices/unname", "Take a device's name away for good", "UnnameDevice", Answer::One("Device")),
    get("/v1/groups", "Every process group", Answer::Many("Group")),
    get("/v1/groups/{name}", "One process group, with its row", Answer::One("Group")),
    put(
        "/v1/groups/{name}",
        "Swap a group's row for its next one, or found the group",
        "SwapGroup",
        Answer::One("SwappedGroup"),
    ),
    get(
        "/v1/groups/{name}/request",
        "What an operator asked of a group; null where nothing",
        Answer::Maybe("GroupRequest"),
    ),
    put(
        "/v1/groups/{name}/request",
        "Ask for a member to be replaced by a process that waits; follow the group until it is",
        "ReplaceMember",
        Answer::One("Group"),
    ),
    Operation {
        method: "delete",
        ..get(
            "/v1/groups/{name}/request",
            "Withdraw a request that has not been carried out; the answer shows which came first",
            Answer::One("Group"),
        )
    },
    put(
        "/v1/groups/{name}/standbys",
        "Say that a process waits for a place, every second or so; answers with what is asked of it",
        "WaitForPlace",
        Answer::One("PlaceOffer"),
    ),
    post("/v1/invites", "Make a one-time token for one new node", "InviteRequest", Answer::One("Invitation")),
    get("/v1/keys", "How the cluster's keys and this node's certificate stand", Answer::One("KeyStatus")),
    Operation {
        method: "post",
        ..get(
            "/v1/keys/rotate",
            "Rotate keys and certificates; answers when it is done",
            Answer::One("KeyStatus"),
        )
    },
    Operation {
        method: "post",
        ..get(
            "/v1/nodes/{name}/revoke",
            "Remove a node that is no member for good, and revoke its certificates",
            Answer::One("KeyStatus"),
        )
    },
    get(
        "/v1/operations",
        "What the cluster does in several steps, and what it did within the last hour",
        Answer::Many("Operation"),
    ),
    get("/v1/operations/{name}", "One operation", Answer::One("Operation")),
    post(
        "/v1/nodes/{name}/replace",
        "Have a candidate take a node's place in one view; answers when it has",
        "ReplaceRequest",
        Answer::One("Changed"),
    ),
    post(
        "/v1/nodes/{name}/drain",
        "Have a node hand its containers over, or take that back; answers when it has none left",
        "DrainRequest",
        Answer::One("Changed"),
    ),
    Operation {
        method: "post",
        ..get(
            "/v1/nodes/{name}/leave",
            "Have a node hand its duties over and leave; answers when it is no member any more",
            Answer::One("Changed"),
        )
    },
    get("/v1/containers", "Every container", Answer::Many("Container")),
    post(
        "/v1/containers",
        "Run a program as a container; follow its changes until it runs",
        "RunRequest",
        Answer::One("Container"),
    ),
    get("/v1/containers/{name}", "One container", Answer::One("Container")),
    Operation {
        method: "delete",
        query: &[flag("force")],
        ..get("/v1/containers/{name}", "Remove a container with its checkpoints", Answer::One("Done"))
    },
    get(
        "/v1/containers/{name}/changes",
        "The container now and after each change",
        Answer::Events("Container"),
    ),
    post(
        "/v1/containers/{name}/stop",
        "Stop a container; follow its changes until it is stopped",
        "StopRequest",
        Answer::One("Container"),
    ),
    post(
        "/v1/containers/{name}/restore",
        "Restart a container from a checkpoint",
        "RestoreRequest",
        Answer::One("Container"),
    ),
    get(
        "/v1/containers/{name}/checkpoints",
        "Its committed checkpoints, and where their copies are",
        Answer::Many("Checkpoint"),
    ),
    Operation {
        method: "post",
        ..get(
            "/v1/containers/{name}/checkpoints",
            "Take a checkpoint now; answers when it is committed",
            Answer::One("Checkpoint"),
        )
    },
    Operation {
        query: &[flag("follow"), small("tail")],
        ..get("/v1/containers/{name}/logs", "What it printed", Answer::Events("LogLine"))
    },
    post(
        "/v1/containers/{name}/exec",
        "Run a command inside (upgrade: steadfast-exec/1)",
        "ExecRequest",
        Answer::Upgrade,
    ),
    get("/v1/checkpoints", "Every committed checkpoint", Answer::Many("Checkpoint")),
    get("/v1/programs", "Every program that is deployed", Answer::Many("Program")),
    put(
        "/v1/programs/{name}",
        "Deploy a version of a program; answers when all nodes that answer know it",
        "DeployRequest",
        Answer::One("Program"),
    ),
    Operation {
        query: &[text("program"), text("doing"), text("after"), small("limit")],
        ..get(
            "/v1/episodes",
            "The instances of all nodes, by name, a page at a time",
            Answer::One("InstanceList"),
        )
    },
    get("/v1/episodes/{program}/{key}", "An instance, with all that it waits for", Answer::One("Instance")),
    get(
        "/v1/episodes/{program}/{key}/history",
        "Its last episodes, oldest first",
        Answer::Many("PastEpisode"),
    ),
    Operation {
        query: &[small("wait")],
        ..post(
            "/v1/episodes/{program}/{key}/start",
            "Begin an instance; with `wait`, in seconds, answers when it has ended (header Idempotency-Key)",
            "StartRequest",
            Answer::One("EpisodeAnswer"),
        )
    },
    Operation {
        query: &[small("wait")],
        ..post(
            "/v1/episodes/{program}/{key}/send",
            "Tell an instance something; with `wait`, in seconds, answers what it answers (header Idempotency-Key)",
            "SendRequest",
            Answer::One("EpisodeAnswer"),
        )
    },
    steer("/v1/episodes/{program}/{key}/cancel", "Ask an instance and its children to end"),
    steer("/v1/episodes/{program}/{key}/pause", "Begin no more episodes of an instance"),
    steer("/v1/episodes/{program}/{key}/retry", "Go on with an instance that is paused or failing, at once"),
    post(
        "/v1/episodes/{program}/{key}/migrate",
        "Let an instance run another version of its program from its next episode on",
        "MigrateRequest",
        Answer::One("EpisodeAnswer"),
    ),
    Operation {
        query: &[small("wait")],
        ..get(
            "/v1/exchange/{name}",
            "What instances of all nodes say to an outside party; waits for it as many seconds as `wait` says",
            Answer::One("ExchangeHeard"),
        )
    },
    post(
        "/v1/exchange/{name}",
        "Say something in the name of an outside party; answers what is said to it at once",
        "ExchangeSaid",
        Answer::One("ExchangeHeard"),
    ),
    get("/v1/tokens", "Every token that lasts, without its secret", Answer::Many("Token")),
    post(
        "/v1/tokens",
        "Make a token that lasts, of a role; on the owner's socket only",
        "NewToken",
        Answer::One("Token"),
    ),
    Operation { method: "delete", ..get("/v1/tokens/{name}", "Revoke a token", Answer::One("Done")) },
    post(
        "/v1/page/tokens",
        "Make a one-time token for the page; on the owner's socket only",
        "TokenRequest",
        Answer::One("PageToken"),
    ),
    get("/v1/page/session", "Who asks, and what he may do", Answer::One("Session")),
    post(
        "/v1/page/session",
        "Exchange a token for a session, at the page's address",
        "SessionRequest",
        Answer::One("Session"),
    ),
    Operation { method: "delete", ..get("/v1/page/session", "Sign out", Answer::One("Done")) },
    get(
        "/v1/page/events",
        "The picture of the cluster that the page shows, then what changes of it",
        Answer::Events("PictureChange"),
    ),
    get("/v1/openapi.json", "This document", Answer::One("Object")),
    get("/metrics", "What this node measures, for Prometheus", Answer::Metrics),
];

const fn get(path: &'static str, summary: &'static str, answer: Answer) -> Operation {
    Operation { method: "get", path, summary, body: None, query: &[], answer }
}

const fn post(path: &'static str, summary: &'static str, body: &'static str, answer: Answer) -> Operation {
    Operation { method: "post", path, summary, body: Some(body), query: &[], answer }
}

const fn put(path: &'static str, summary: &'static str, body: &'static str, answer: Answer) -> Operation {
    Operation { method: "put", ..post(path, summary, body, answer) }
}

const fn steer(path: &'static str, summary: &'static str) -> Operation {
    Operation { method: "post", ..get(path, summary, Answer::One("EpisodeAnswer")) }
}

const fn text(name: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Text }
}

const fn small(name: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Small }
}

const fn count(name: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Count }
}

const fn flag(name: &'static str) -> Parameter {
    Parameter { name, kind: Kind::Flag }
}

/// The whole document as JSON.
pub fn document() -> String {
    let mut paths = PathsBuilder::new();
    for operation in OPERATIONS {
        let method = match operation.method {
            "post" => HttpMethod::Post,
            "put" => HttpMethod::Put,
            "delete" => HttpMethod::Delete,
            _ => HttpMethod::Get,
        };
        paths = paths
            .path(operation.path, PathItemBuilder::new().operation(method, described(operation)).build());
    }
    let about = "JSON over HTTP on the agent's Unix socket, owner only; and at the page's address, where one is configured, with the role of a token (`steadfast tokens`) or of a session at the page. Every refusal is an ErrorBody.";
    let document = OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Steadfast")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some(about))
                .build(),
        )
        .paths(paths.build())
        .components(Some(components()))
        // On the socket nothing is asked for.
        .security(Some([SecurityRequirement::default(), SecurityRequirement::new("token", [""; 0])]))
        .build();
    let text = document.to_pretty_json().unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}"));
    format!("{text}\n")
}

fn described(operation: &Operation) -> utoipa::openapi::path::Operation {
    let mut described = OperationBuilder::new().summary(Some(operation.summary));
    for (name, description) in IN_PATHS {
        if operation.path.contains(&format!("{{{name}}}")) {
            described = described.parameter(
                ParameterBuilder::new()
                    .name(name)
                    .parameter_in(ParameterIn::Path)
                    .required(Required::True)
                    .schema(Some(schema(Kind::Text)))
                    .description(Some(description)),
            );
        }
    }
    for parameter in operation.query {
        described = described.parameter(
            ParameterBuilder::new()
                .name(parameter.name)
                .parameter_in(ParameterIn::Query)
                .required(Required::False)
                .schema(Some(schema(parameter.kind))),
        );
    }
    if let Some(body) = operation.body {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(body))).build();
        described = described
            .request_body(Some(RequestBodyBuilder::new().content("application/json", content).build()));
    }
    let (status, answer) = answered(operation.answer);
    let responses = ResponsesBuilder::new().response(status, answer);
    let responses = REFUSALS.iter().fold(responses, |responses, (status, _)| {
        responses.response(*status, Ref::from_response_name(format!("Refused{status}")))
    });
    described.responses(responses).build()
}

fn schema(kind: Kind) -> ObjectBuilder {
    let number = |max| ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(max);
    match kind {
        Kind::Text => ObjectBuilder::new().schema_type(Type::String),
        Kind::Small => number(Some(u32::MAX)),
        Kind::Count => number(None::<u32>),
        Kind::Flag => ObjectBuilder::new().schema_type(Type::Boolean),
    }
}

/// Refusals, each by its status.
fn refusals(components: ComponentsBuilder) -> ComponentsBuilder {
    REFUSALS.iter().fold(components, |components, (status, meaning)| {
        let error = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
        let refused = ResponseBuilder::new().description(*meaning).content("application/json", error);
        components.response(format!("Refused{status}"), refused.build())
    })
}

fn answered(answer: Answer) -> (&'static str, utoipa::openapi::Response) {
    let list = |name| utoipa::openapi::schema::ArrayBuilder::new().items(Ref::from_schema_name(name)).build();
    let response = ResponseBuilder::new();
    match answer {
        Answer::One("Object") => ("200", response.description("done").build()),
        Answer::One(name) => {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(name))).build();
            ("200", response.description("done").content("application/json", content).build())
        }
        Answer::Maybe(name) => {
            let either = OneOfBuilder::new()
                .item(Ref::from_schema_name(name))
                .item(ObjectBuilder::new().schema_type(Type::Null))
                .build();
            let content = ContentBuilder::new().schema(Some(RefOr::T(Schema::OneOf(either)))).build();
            ("200", response.description("done").content("application/json", content).build())
        }
        Answer::Many(name) => {
            let content = ContentBuilder::new().schema(Some(RefOr::T(Schema::Array(list(name))))).build();
            ("200", response.description("done").content("application/json", content).build())
        }
        Answer::Events(name) => {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(name))).build();
            (
                "200",
                response
                    .description("one value per event; an event named `error` is an ErrorBody and the last")
                    .content("text/event-stream", content)
                    .build(),
            )
        }
        Answer::File => {
            let content = ContentBuilder::new().build();
            ("200", response.description("done").content("application/octet-stream", content).build())
        }
        Answer::Metrics => {
            let content = ContentBuilder::new().build();
            ("200", response.description("done").content(super::metrics::CONTENT_TYPE, content).build())
        }
        Answer::Upgrade => {
            ("101", response.description("the connection carries the framed stream from here on").build())
        }
    }
}

fn components() -> utoipa::openapi::Components {
    fn add<T: ToSchema + PartialSchema>(components: ComponentsBuilder) -> ComponentsBuilder {
        components.schema(T::name(), T::schema())
    }
    let components = refusals(ComponentsBuilder::new());
    let components = add::<types::ErrorBody>(add::<types::Status>(add::<types::Cluster>(add::<
        types::CatalogState,
    >(components))));
    let components = add::<types::View>(add::<view_types::Survives>(add::<types::Peer>(components)));
    let components = add::<types::Heard>(add::<types::LocalContainer>(add::<types::Happening>(components)));
    let components = add::<types::Node>(add::<types::Spec>(add::<types::RunRequest>(components)));
    let components = add::<types::Container>(add::<types::Checkpoint>(add::<types::Copy>(components)));
    let components =
        add::<types::StopRequest>(add::<types::RestoreRequest>(add::<types::InviteRequest>(components)));
    let components = add::<types::Invitation>(add::<types::KeyStatus>(components));
    let components = add::<types::Changed>(add::<types::Probation>(add::<types::Operation>(components)));
    let components = add::<types::Evidence>(add::<types::Eliminated>(components));
    let components = add::<types::ReplaceRequest>(add::<types::DrainRequest>(components));
    let components = add::<event_types::EmitRequest>(add::<crate::events::cloud::CloudEvent>(components));
    let components = add::<event_types::Emitted>(components);
    let components = add::<event_types::EventsStatus>(add::<event_types::WatchedTopic>(components));
    let components = add::<event_types::FollowedTopic>(components);
    let components = add::<types::LogLine>(add::<types::ExecRequest>(components));
    let components = add::<device_types::DeviceReport>(add::<device_types::Device>(components));
    let components = add::<device_types::DeviceOnNode>(add::<device_types::DevicesHere>(components));
    let components = add::<device_types::Unidentified>(add::<device_types::Waiting>(components));
    let components = add::<device_types::NameDevice>(add::<device_types::RenameDevice>(components));
    let components = add::<device_types::UnnameDevice>(components);
    let components = add::<link_types::LinkReport>(add::<link_types::Link>(components));
    let components = add::<link_types::General>(add::<link_types::VerdictReport>(components));
    let components = add::<group_types::Group>(add::<group_types::GroupMember>(components));
    let components = add::<group_types::GroupRequest>(add::<group_types::SwapGroup>(components));
    let components = add::<group_types::GroupKey>(add::<group_types::SwappedGroup>(components));
    let components = add::<group_types::ReplaceMember>(add::<group_types::WaitForPlace>(components));
    let components = add::<group_types::PlaceOffer>(components);
    let components = add::<view_types::ViewRecord>(add::<view_types::Member>(components));
    let components = add::<view_types::ChangedNode>(add::<view_types::SurvivesDomain>(components));
    let components = add::<link_types::Verdict>(add::<link_types::Evidence>(components));
    let components = add::<page_types::TokenRequest>(add::<page_types::PageToken>(components));
    let components = add::<page_types::SessionRequest>(add::<page_types::Session>(components));
    let components = add::<page_types::PictureChange>(components);
    let components = add::<token_types::NewToken>(add::<token_types::Token>(components));
    let components = add::<episode_types::DeployRequest>(add::<episode_types::Program>(components));
    let components = add::<episode_types::ProgramVersion>(add::<episode_types::StartRequest>(components));
    let components = add::<episode_types::SendRequest>(add::<episode_types::MigrateRequest>(components));
    let components = add::<episode_types::EpisodeAnswer>(add::<episode_types::InstanceList>(components));
    let components = add::<episode_types::InstanceRow>(add::<episode_types::Instance>(components));
    let components = add::<episode_types::WaitedFor>(add::<episode_types::StoppedWhy>(components));
    let components = add::<episode_types::EventShown>(add::<episode_types::OutboxShown>(components));
    let components = add::<episode_types::PeerShown>(add::<episode_types::PastEpisode>(components));
    let components = add::<episode_types::EffectShown>(add::<exchange_types::ExchangeWord>(components));
    let components = add::<episode_types::MessageShown>(components);
    let components = add::<exchange_types::ExchangeSaid>(add::<exchange_types::ExchangeHeard>(components));
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    add::<types::Done>(components).security_scheme("token", SecurityScheme::Http(token)).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_that_an_operation_names_is_described() {
        let document: serde_json::Value = serde_json::from_str(&document()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for operation in OPERATIONS {
            let answer = match operation.answer {
                Answer::One("Object") | Answer::File | Answer::Metrics | Answer::Upgrade => None,
                Answer::One(name) | Answer::Maybe(name) | Answer::Many(name) | Answer::Events(name) => {
                    Some(name)
                }
            };
            for name in answer.into_iter().chain(operation.body) {
                assert!(schemas.contains_key(name), "{name} of {} is not described", operation.path);
            }
            let described = &document["paths"][operation.path][operation.method];
            assert_eq!(described["summary"], operation.summary, "{} {}", operation.method, operation.path);
        }
    }
}
