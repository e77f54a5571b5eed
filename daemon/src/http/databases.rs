//! `GET /export`, `POST /import` and `GET /history`: databases as a whole.

use std::io::{ErrorKind, Read};

use bytes::{Buf, Bytes};
use futures_util::Stream;
use litefs_api::{Checksum, History, HistoryEntry, Position, Txid};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, error::SendTimeoutError};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{StreamReader, SyncIoBridge};
use warp::http::StatusCode;
use warp::reply::{Reply, Response};

use super::error::ApiError;
use super::limits::{Work, paced};
use super::routes::Query;
use super::server::ConnectionEnd;
use super::status::json;
use super::{Api, database_name};

const PIECE: usize = 64 << 10;
/// Pieces of an export that wait for the network.
const PIECES: usize = 16;
/// Most transactions in one answer.
const HISTORY_LIMIT: usize = 10_000;

/// The bytes of a database at one position, on any node.
pub(super) async fn export(api: Api, query: Query, connection: ConnectionEnd) -> Result<Response, ApiError> {
    let name = database_name(query.get("name"))?;
    let db = api.store.database(&name).filter(|db| !db.position().is_zero());
    let db = db.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "database not found"))?;
    let place = api.shares.take(Work::Export)?;
    let stall = api.shares.stall();
    let opened = tokio::task::spawn_blocking(move || {
        let snapshot = db.snapshot()?;
        Ok::<_, engine::Error>((snapshot.database_len(), snapshot.database()?, place))
    });
    let (len, reader, place) = opened.await.map_err(ApiError::internal)??;
    let (sender, pieces) = mpsc::channel::<std::io::Result<Bytes>>(PIECES);
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let _place = place;
        let send = |piece| runtime.block_on(sender.send_timeout(piece, stall));
        if let Err(SendTimeoutError::Timeout(_)) = send_all(reader, send) {
            tracing::warn!(db = %name, "export given up: its receiver has not read for {stall:?}");
            connection.break_off();
        }
    });
    let body = warp::reply::stream(ReceiverStream::new(pieces));
    let body = warp::reply::with_header(body, "content-type", "application/octet-stream");
    Ok(warp::reply::with_header(body, "content-length", len).into_response())
}

type Piece = std::io::Result<Bytes>;

/// Sends all that there is to read. An error ends the body in the middle, which the client notices; text in it would look like data.
fn send_all(
    mut reader: impl Read,
    send: impl Fn(Piece) -> Result<(), SendTimeoutError<Piece>>,
) -> Result<(), SendTimeoutError<Piece>> {
    loop {
        let mut piece = vec![0; PIECE];
        match reader.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                piece.truncate(n);
                send(Ok(Bytes::from(piece)))?;
            }
            Err(error) => return send(Err(error)),
        }
    }
}

/// Creates or replaces a database with an SQLite file. Nothing is changed before the file is there as a whole.
pub(super) async fn import<B, S>(api: Api, query: Query, body: S) -> Result<Response, ApiError>
where
    B: Buf + 'static,
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
{
    let name = database_name(query.get("name"))?;
    api.require_primary()?;
    let place = api.shares.take(Work::Import)?;
    let reader = StreamReader::new(Box::pin(paced(body, api.shares.stall())));
    let imported = tokio::task::spawn_blocking(move || {
        let _place = place;
        let mut reader = SyncIoBridge::new(reader);
        let position = api.store.import(&name, &mut reader)?;
        tracing::info!(db = %name, %position, "database imported");
        Ok::<(), engine::Error>(())
    });
    imported
        .await
        .map_err(ApiError::internal)?
        .map_err(not_imported)?;
    Ok(warp::reply().into_response())
}

fn not_imported(error: engine::Error) -> ApiError {
    match &error {
        engine::Error::Io { op, source, .. }
            if *op == engine::IMPORT_RECEIVE && source.kind() == ErrorKind::TimedOut =>
        {
            let message = format!("import given up, nothing was changed: {source}; send the file again");
            ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
        }
        _ => error.into(),
    }
}

/// Transactions and the checksums after them, as far as the log reaches.
pub(super) async fn history(api: Api, query: Query) -> Result<Response, ApiError> {
    let name = database_name(query.get("name"))?;
    let from = match query.get("from") {
        Some(text) => text.parse::<Txid>().map_err(ApiError::bad_request)?,
        None => Txid(1),
    };
    let limit = match query.get("limit") {
        Some(text) => text
            .parse::<usize>()
            .map_err(|_| ApiError::bad_request("limit is not a number"))?,
        None => HISTORY_LIMIT,
    };
    let db = api.store.database(&name);
    let db = db.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "database not found"))?;
    let read = tokio::task::spawn_blocking(move || {
        let position = db.received();
        let records = db.records(ltx::Txid(from.0)).take(limit.min(HISTORY_LIMIT));
        let entries = records.map(|record| {
            let info = record?.info;
            Ok(HistoryEntry {
                txid: Txid(info.max.0),
                checksum: Checksum(info.post.0),
            })
        });
        let entries = entries.collect::<Result<Vec<_>, engine::Error>>()?;
        let position = Position {
            txid: Txid(position.txid.0),
            checksum: Checksum(position.post_apply.0),
        };
        Ok::<_, engine::Error>(History {
            name: db.name().to_string(),
            position,
            entries,
        })
    });
    json(&read.await.map_err(ApiError::internal)??)
}
