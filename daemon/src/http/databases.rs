//! `GET /export`, `POST /import` and `GET /history`: databases as a whole.

use std::io::Read;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use litefs_api::{Checksum, History, HistoryEntry, Position, Txid};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{StreamReader, SyncIoBridge};
use warp::reply::{Reply, Response};

use super::error::ApiError;
use super::routes::Query;
use super::status::json;
use super::{Api, database_name};

const PIECE: usize = 64 << 10;
/// Pieces of an export that wait for the network.
const PIECES: usize = 16;
/// How long the sender of an import may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// Most transactions in one answer.
const HISTORY_LIMIT: usize = 10_000;

/// The bytes of a database at one position, on any node.
pub(super) async fn export(api: Api, query: Query) -> Result<Response, ApiError> {
    let name = database_name(query.get("name"))?;
    let db = api.store.database(&name).filter(|db| !db.position().is_zero());
    let db = db.ok_or_else(|| ApiError::new(warp::http::StatusCode::NOT_FOUND, "database not found"))?;
    let opened = tokio::task::spawn_blocking(move || {
        let snapshot = db.snapshot()?;
        Ok::<_, engine::Error>((snapshot.database_len(), snapshot.database()?))
    });
    let (len, mut reader) = opened.await.map_err(ApiError::internal)??;
    let (sender, pieces) = mpsc::channel::<std::io::Result<Bytes>>(PIECES);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut piece = vec![0; PIECE];
            let piece = match reader.read(&mut piece) {
                Ok(0) => return,
                Ok(n) => {
                    piece.truncate(n);
                    Ok(Bytes::from(piece))
                }
                // An error ends the body in the middle, which the client notices; text in it would look like data.
                Err(error) => Err(error),
            };
            let last = piece.is_err();
            if sender.blocking_send(piece).is_err() || last {
                return;
            }
        }
    });
    let body = warp::reply::stream(ReceiverStream::new(pieces));
    let body = warp::reply::with_header(body, "content-type", "application/octet-stream");
    Ok(warp::reply::with_header(body, "content-length", len).into_response())
}

/// Creates or replaces a database with an SQLite file.
pub(super) async fn import<B, S>(api: Api, query: Query, body: S) -> Result<Response, ApiError>
where
    B: Buf,
    S: Stream<Item = Result<B, warp::Error>> + Send + 'static,
{
    let name = database_name(query.get("name"))?;
    api.require_primary()?;
    let body = Box::pin(body.map(|part| part.map(|mut part| part.copy_to_bytes(part.remaining()))));
    let body = tokio_stream::StreamExt::timeout(body, SILENCE);
    let body = body.map(|part| match part {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(std::io::Error::other(error)),
        Err(_) => Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "the sender is silent",
        )),
    });
    let reader = StreamReader::new(Box::pin(body));
    let imported = tokio::task::spawn_blocking(move || {
        let mut reader = SyncIoBridge::new(reader);
        let position = api.store.import(&name, &mut reader)?;
        tracing::info!(db = %name, %position, "database imported");
        Ok::<(), engine::Error>(())
    });
    imported.await.map_err(ApiError::internal)??;
    Ok(warp::reply().into_response())
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
    let db = db.ok_or_else(|| ApiError::new(warp::http::StatusCode::NOT_FOUND, "database not found"))?;
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
