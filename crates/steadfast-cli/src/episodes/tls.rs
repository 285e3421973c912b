//! TLS of connections to PostgreSQL, with the authorities of a file.
//!
//! It decides nothing: the certificate is checked against the host's name and these authorities, as everywhere. It must
//! never fall back to plain text.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

use crate::events::sinks::connect::{Trust, Wire};

/// Seals connections, believing these authorities.
pub(crate) struct Sealing(pub(crate) Trust);

/// Seals one connection, to the host of this name.
pub(crate) struct SealingOne {
    connector: TlsConnector,
    host: ServerName<'static>,
}

/// A sealed connection.
pub(crate) struct Sealed(Box<tokio_rustls::client::TlsStream<Box<dyn Wire>>>);

impl<S: Wire + 'static> MakeTlsConnect<S> for Sealing {
    type Stream = Sealed;
    type TlsConnect = SealingOne;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<SealingOne> {
        let host = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(SealingOne { connector: TlsConnector::from(Arc::clone(self.0.settings())), host })
    }
}

impl<S: Wire + 'static> TlsConnect<S> for SealingOne {
    type Stream = Sealed;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Sealed>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let stream: Box<dyn Wire> = Box::new(stream);
        Box::pin(async move { Ok(Sealed(Box::new(self.connector.connect(self.host, stream).await?))) })
    }
}

impl TlsStream for Sealed {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Sealed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
        bytes: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(ctx, bytes)
    }
}

impl AsyncWrite for Sealed {
    fn poll_write(mut self: Pin<&mut Self>, ctx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(ctx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(ctx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(ctx)
    }
}
