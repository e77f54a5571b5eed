//! Which function answers which request.

use std::collections::HashMap;
use std::convert::Infallible;

use warp::http::{HeaderValue, Method, StatusCode, Version};
use warp::reject::Rejection;
use warp::reply::{Reply, Response};
use warp::{Filter, filters::BoxedFilter};

use super::error::ApiError;
use super::server::ConnectionEnd;
use super::{Api, admin, databases, events, metrics, status, stream};

/// Parameters of a URL. Of a name that occurs twice, one value counts.
pub(super) type Query = HashMap<String, String>;

type Answer = Result<Response, ApiError>;

/// All endpoints. An answer of any kind tells who gave it.
pub(super) fn routes(api: &Api) -> BoxedFilter<(Response,)> {
    let answering = api.clone();
    reads(api)
        .or(writes(api))
        .unify()
        .or(export_route(api))
        .unify()
        .or(stream_route(api))
        .unify()
        .recover(unmatched)
        .unify()
        .map(move |response| signed(&answering, response))
        .boxed()
}

/// A function of the node and a query.
fn route<F, Fut>(api: &Api, method: Method, path: &'static str, answer: F) -> BoxedFilter<(Response,)>
where
    F: Fn(Api, Query) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    let api = api.clone();
    let wanted = method;
    warp::path(path)
        .and(warp::path::end())
        .and(warp::method())
        .and(warp::query::<Query>())
        .and_then(move |method: Method, query: Query| {
            let (api, answer, matches) = (api.clone(), answer.clone(), method == wanted);
            async move {
                if !matches {
                    return Err(warp::reject::custom(WrongMethod));
                }
                Ok::<Response, Rejection>(into_response(answer(api, query).await))
            }
        })
        .boxed()
}

fn reads(api: &Api) -> BoxedFilter<(Response,)> {
    route(api, Method::GET, "info", status::info)
        .or(route(api, Method::GET, "status", status::status))
        .unify()
        .or(route(api, Method::GET, "history", databases::history))
        .unify()
        .or(route(api, Method::GET, "events", events::events))
        .unify()
        .or(route(api, Method::GET, "metrics", metrics::metrics))
        .unify()
        .boxed()
}

/// Of the function that ends when its peer does not read.
fn export_route(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    warp::path("export")
        .and(warp::path::end())
        .and(warp::get())
        .and(warp::query::<Query>())
        .and(warp::ext::get::<ConnectionEnd>())
        .then(move |query, connection| {
            let api = api.clone();
            async move { into_response(databases::export(api, query, connection).await) }
        })
        .boxed()
}

fn writes(api: &Api) -> BoxedFilter<(Response,)> {
    let importing = api.clone();
    let import = warp::path("import")
        .and(warp::path::end())
        .and(warp::post())
        .and(warp::query::<Query>())
        .and(warp::body::stream())
        .then(move |query: Query, body| {
            let api = importing.clone();
            async move { into_response(databases::import(api, query, body).await) }
        });
    route(api, Method::POST, "halt", admin::halt)
        .or(route(api, Method::DELETE, "halt", admin::halt))
        .unify()
        .or(route(api, Method::POST, "tx", admin::halt))
        .unify()
        .or(route(api, Method::POST, "promote", admin::promote))
        .unify()
        .or(route(api, Method::POST, "handoff", admin::handoff))
        .unify()
        .or(import)
        .unify()
        .boxed()
}

fn stream_route(api: &Api) -> BoxedFilter<(Response,)> {
    let api = api.clone();
    warp::path("stream")
        .and(warp::path::end())
        .and(warp::post())
        .and(warp::query::<Query>())
        .and(warp::header::headers_cloned())
        .and(warp::ext::get::<Version>())
        .and(warp::body::stream())
        .then(move |query, headers, version, body| {
            let api = api.clone();
            async move { into_response(stream::stream(api, query, headers, version, body).await) }
        })
        .boxed()
}

fn into_response(answer: Answer) -> Response {
    answer.unwrap_or_else(ApiError::into_response)
}

#[derive(Debug)]
struct WrongMethod;

impl warp::reject::Reject for WrongMethod {}

/// Requests that no endpoint takes.
async fn unmatched(rejection: Rejection) -> Result<Response, Infallible> {
    let wrong_method = rejection.find::<WrongMethod>().is_some()
        || rejection.find::<warp::reject::MethodNotAllowed>().is_some();
    let error = if wrong_method {
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
    } else if rejection.find::<warp::reject::InvalidQuery>().is_some() {
        ApiError::bad_request("invalid query")
    } else if rejection.is_not_found() {
        ApiError::new(StatusCode::NOT_FOUND, "404 page not found")
    } else {
        ApiError::bad_request(format!("{rejection:?}"))
    };
    Ok(error.into_response())
}

/// Adds the headers that every answer has.
fn signed(api: &Api, mut response: Response) -> Response {
    use litefs_api::header::{CLUSTER_ID, NODE_ID};
    let text = |text: &str| HeaderValue::from_str(text).ok();
    let cluster_id = api.store.cluster_id();
    let headers = response.headers_mut();
    if let Some(id) = text(&api.node_id().to_string()) {
        headers.insert(NODE_ID, id);
    }
    if let Some(id) = cluster_id.as_deref().and_then(text) {
        headers.insert(CLUSTER_ID, id);
    }
    response
}
