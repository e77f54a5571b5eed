//! What `lease.consul.url` says: `scheme://[user:TOKEN@]host[/prefix]`.

use hyper::header::HeaderValue;
use percent_encoding::percent_decode_str;
use url::Url;

use crate::lease::{LeaseError, Result};

/// One Consul agent, and how to talk to it.
pub(super) struct Address {
    /// Scheme, host and port, and the query if there is one, which goes with every request.
    base: Url,
    /// For people: without token and query.
    shown: String,
    token: Option<HeaderValue>,
}

impl Address {
    /// `from_environment`: the token where the URL has none.
    pub(super) fn new(url: &Url, from_environment: Option<String>) -> Result<Self> {
        let mut base = url.clone();
        // The token travels in a header of its own. Neither call fails for a URL with a host.
        let _ = base.set_username("");
        let _ = base.set_password(None);
        base.set_fragment(None);
        let mut shown = base.clone();
        shown.set_query(None);
        let shown = shown.as_str().trim_end_matches('/').to_string();
        base.set_path("");
        let in_url = url
            .password()
            .map(|password| percent_decode_str(password).decode_utf8_lossy().into_owned());
        let token = in_url.or(from_environment).filter(|token| !token.is_empty());
        let token = token.map(|token| header(&token, &shown)).transpose()?;
        Ok(Address { base, shown, token })
    }

    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    pub(super) fn token(&self) -> Option<&HeaderValue> {
        self.token.as_ref()
    }

    pub(super) fn is_secure(&self) -> bool {
        self.base.scheme() == "https"
    }

    /// The URL of one call.
    pub(super) fn call(&self, path: &str, query: &[(&str, String)]) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("/v1/{path}"));
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }
}

fn header(token: &str, shown: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(token).map_err(|_| LeaseError::Setup {
        what: format!("the token for {shown} has characters that no token has"),
        hint: "check the password in `lease.consul.url`, or CONSUL_HTTP_TOKEN, for line breaks",
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use hyper::Uri;
    use proptest::prelude::*;

    use super::*;

    fn address(url: &str) -> Address {
        Address::new(&url.parse().unwrap(), Some("environment".to_string())).unwrap()
    }

    #[test]
    fn the_url_that_people_see_has_nothing_secret() {
        for (url, shown) in [
            (
                "https://:t0ken@consul.fly.dev/app-1234/",
                "https://consul.fly.dev/app-1234",
            ),
            (
                "https://user:t0ken@consul:8501?token=t0ken#t0ken",
                "https://consul:8501",
            ),
            ("http://t0ken@[::1]:8500", "http://[::1]:8500"),
        ] {
            assert_eq!(address(url).shown(), shown);
        }
    }

    #[test]
    fn the_token_is_the_password_as_it_was_before_it_was_written_into_a_url() {
        let token = |url| address(url).token().unwrap().to_str().unwrap().to_string();
        assert_eq!(token("https://:a%2Fb%3D+c@consul"), "a/b=+c");
        assert_eq!(token("https://user:t0ken@consul"), "t0ken");
        assert_eq!(token("https://consul"), "environment");
        assert_eq!(token("https://user:@consul"), "environment");
        let none = Address::new(&"https://consul".parse().unwrap(), Some(String::new())).unwrap();
        assert!(none.token().is_none());
    }

    #[test]
    fn a_token_that_no_header_can_carry_is_refused_and_not_repeated() {
        let refused = Address::new(&"https://:t0ken%0A@consul".parse().unwrap(), None);
        let message = refused.err().unwrap().to_string();
        assert!(
            message.contains("https://consul") && !message.contains("t0ken"),
            "{message}"
        );
    }

    proptest! {
        #[test]
        fn every_key_and_query_can_be_asked_for(key in any::<String>(), query in "[^#]*") {
            let base = format!("https://consul/prefix?{query}").parse::<Url>();
            let address = Address::new(&base.unwrap(), None).unwrap();
            let url = address.call(&format!("kv/{key}"), &[("cas", key.clone())]);
            prop_assert!(url.as_str().parse::<Uri>().is_ok(), "{url}");
            prop_assert_eq!(url.host_str(), Some("consul"));
        }
    }

    #[test]
    fn a_call_has_the_query_of_the_url_and_its_own() {
        let url = address("https://:t@consul:8501/prefix?dc=east")
            .call("kv/prefix/key", &[("cas", "7".to_string())]);
        assert_eq!(url.as_str(), "https://consul:8501/v1/kv/prefix/key?dc=east&cas=7");
    }
}
