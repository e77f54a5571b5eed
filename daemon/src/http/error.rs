//! Error answers: a status and a line of text, as LiteFS sends them.

use warp::http::StatusCode;
use warp::http::header::RETRY_AFTER;
use warp::reply::{Reply, Response};

/// An error of the API.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
    /// In seconds.
    retry_after: Option<u64>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl ToString) -> Self {
        ApiError {
            status,
            message: message.to_string(),
            retry_after: None,
        }
    }

    /// Tells when the same request may succeed.
    pub(super) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    pub(super) fn bad_request(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn internal(message: impl ToString) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// What only a primary does was asked of another node.
    pub(super) fn not_primary() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "lease expired")
    }
}

impl From<engine::Error> for ApiError {
    fn from(error: engine::Error) -> Self {
        let status = match &error {
            engine::Error::NotFound(_) => StatusCode::NOT_FOUND,
            engine::Error::Name(_) | engine::Error::Invalid(_) => StatusCode::BAD_REQUEST,
            engine::Error::ReadOnly(_) => return Self::not_primary(),
            engine::Error::Busy { .. } => StatusCode::SERVICE_UNAVAILABLE,
            engine::Error::Quarantined { .. } => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error)
    }
}

impl Reply for ApiError {
    fn into_response(self) -> Response {
        let mut response = format!("{}\n", self.message).into_response();
        *response.status_mut() = self.status;
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}
