//! Steps as spans of OpenTelemetry, and their way to a collector: OTLP over HTTP, from a thread of its own.
//!
//! It must never make an operation wait: a span goes into a bounded queue or is dropped. A collector that can't be
//! reached is told of once, until it answers again. Spans of libraries and log lines are not sent.

use std::borrow::Cow;
use std::fmt::Display;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use steadfast::net::rpc::{Peers, Services, Trace, Tracer};
use steadfast_proto::ids::NodeId;
use tokio::net::TcpStream;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::{Layer, Registry};

use super::Attributes;
use crate::codes::Code;
use crate::config::Traces;
use crate::failure::Failure;

/// What marks the spans that are sent.
const TARGET: &str = "steadfast::traced";
/// Spans that wait for the collector; more are dropped.
const QUEUE_SPANS: usize = 2048;
/// How long spans are gathered.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take for one delivery.
const DELIVERY_MAX: Duration = Duration::from_secs(5);
/// How long the end of the agent waits for the last delivery.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// The largest answer of the collector that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Set once traces are sent.
static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// What sends the steps of this process.
pub type Export = Box<dyn Layer<Registry> + Send + Sync>;

/// Begins to send the steps of this process; to be made once.
pub fn layer(traces: &Traces, node: &str) -> Result<Export, Failure> {
    let failed = |error: String| Failure::new(Code::Internal, format!("traces can't be sent: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(error.to_string()))?;
    let client = Client { runtime, is_down: AtomicBool::new(false) };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_endpoint(format!("{}/v1/traces", traces.endpoint))
        .with_timeout(DELIVERY_MAX)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let batches = BatchConfigBuilder::default().with_max_queue_size(QUEUE_SPANS).with_scheduled_delay(GATHER);
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches.build()).build();
    let about = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", node.to_owned()),
    ];
    let resource = Resource::builder().with_service_name("steadfast").with_attributes(about).build();
    let provider =
        SdkTracerProvider::builder().with_span_processor(processor).with_resource(resource).build();
    let tracer = provider.tracer("steadfast");
    PROVIDER.set(provider).map_err(|_| failed("they are sent already".to_owned()))?;
    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false);
    Ok(spans.with_filter(filter_fn(is_traced)).boxed())
}

/// Whether this is a step, which is not for the log.
pub(crate) fn is_traced(metadata: &tracing::Metadata<'_>) -> bool {
    metadata.target() == TARGET
}

/// Sends what is gathered, for a short while: the agent ends.
pub fn flush() {
    if let Some(provider) = PROVIDER.get() {
        // A collector that is away gets nothing; it was told of when it did not answer.
        let _ = provider.shutdown_with_timeout(FLUSH_MAX);
    }
}

/// Has calls between nodes carry what they are part of.
pub(crate) fn attach(peers: &Peers, services: &Services) {
    if PROVIDER.get().is_some() {
        peers.set_tracer(Arc::new(Calls));
        services.set_tracer(Arc::new(Calls));
    }
}

/// The step that runs on this thread now.
pub(crate) fn current() -> Option<Trace> {
    PROVIDER.get()?;
    let context = Context::current();
    let span = context.span();
    let span = span.span_context();
    let flags = span.trace_flags().to_u8();
    let (operation, step) = (span.trace_id().to_bytes(), span.span_id().to_bytes());
    (span.is_valid() && span.is_sampled()).then_some(Trace { operation, step, flags })
}

pub(super) fn child(name: &str, attributes: Attributes<'_>) -> Span {
    described(tracing::info_span!(target: TARGET, "step", otel.name = name), attributes)
}

pub(super) fn child_of(parent: Option<Trace>, name: &str, attributes: Attributes<'_>) -> Span {
    if PROVIDER.get().is_none() || parent.is_some_and(|parent| !parent.is_sampled()) {
        return Span::none();
    }
    let span = tracing::info_span!(target: TARGET, parent: None, "step", otel.name = name);
    if let Some(parent) = parent {
        let remote = SpanContext::new(
            TraceId::from_bytes(parent.operation),
            SpanId::from_bytes(parent.step),
            TraceFlags::new(parent.flags),
            true,
            TraceState::default(),
        );
        // It was made just now, so its parent can be set.
        let _ = span.set_parent(Context::new().with_remote_span_context(remote));
    }
    described(span, attributes)
}

fn described(span: Span, attributes: Attributes<'_>) -> Span {
    for (name, value) in attributes {
        span.set_attribute(*name, value.to_string());
    }
    span
}

/// Says that a step did not succeed.
pub(crate) fn failed(span: &Span, reason: &dyn Display) {
    span.set_status(Status::Error { description: Cow::Owned(reason.to_string()) });
}

/// Calls between nodes as steps.
struct Calls;

impl Tracer for Calls {
    fn current(&self) -> Option<Trace> {
        current()
    }

    fn serving(&self, service: u8, peer: NodeId, trace: Trace) -> Span {
        let name = match service {
            steadfast::memory::SERVICE => "checkpoint memory",
            crate::agent::catalog::SERVICE_ENGINE => "catalog",
            crate::agent::memory::SERVICE_REFRESH => "checkpoint held",
            _ => "call",
        };
        child_of(Some(trace), name, &[("rpc.service", &service), ("peer", &peer)])
    }
}

type Answer<'future> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'future>>;

/// Delivers to the collector, on the exporter's thread.
#[derive(Debug)]
struct Client {
    runtime: tokio::runtime::Runtime,
    is_down: AtomicBool,
}

impl HttpClient for Client {
    fn send_bytes<'this, 'future>(&'this self, request: Request<Bytes>) -> Answer<'future>
    where
        'this: 'future,
        Self: 'future,
    {
        let uri = request.uri().clone();
        let delivery = async { tokio::time::timeout(DELIVERY_MAX, deliver(request)).await };
        // Nothing else runs on this thread.
        let outcome = self.runtime.block_on(delivery).unwrap_or_else(|late| Err(late.into()));
        let problem = match &outcome {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(response.status().to_string()),
            Err(error) => Some(error.to_string()),
        };
        let was_down = self.is_down.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(error) if !was_down => {
                tracing::warn!(%uri, error, "the collector does not take traces; they are lost until it does");
            }
            None if was_down => tracing::info!(%uri, "the collector takes traces again"),
            Some(_) | None => {}
        }
        Box::pin(std::future::ready(outcome))
    }
}

async fn deliver(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().ok_or("the endpoint has no host")?.clone();
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    parts.headers.insert(hyper::header::HOST, authority.as_str().parse()?);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse()?;
    let exchange = async move {
        let response = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?;
        Ok::<_, HttpError>(Response::from_parts(head, body.to_bytes()))
    };
    let (answer, _) = tokio::join!(exchange, connection);
    answer
}
