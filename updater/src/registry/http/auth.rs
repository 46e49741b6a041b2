//! The answer to a registry's 401: a password, or a token that the registry's token service gives (distribution,
//! "Token Authentication Specification").
//!
//! Not here: where credentials lie (`credentials`). Rule: credentials are looked up only when they are asked for; they go
//! to the registry or to the token service it names, over TLS unless that host is named for plain HTTP, and no redirect
//! is followed with them. The exchange is ours because the answer must be bounded and the address checked first.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_auth::ChallengeRef;
use serde::Deserialize;
use url::Url;

use super::super::RegistryError;
use super::super::credentials::{self, Credential};
use super::body::Body;
use super::client::{Client, Failure, answered, broken};

/// The largest answer of a token service, in bytes; tokens with many claims reach some 10 000.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

/// What a 401 asks for.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Client {
    /// Gives the authorisation that the registry wants instead of `sent`, and keeps it for the next questions.
    pub(super) async fn authorize(
        &self,
        answer: &HeaderMap,
        sent: Option<&HeaderValue>,
        what: &str,
    ) -> Result<HeaderValue, Failure> {
        let mut kept = self.authorization.lock().await;
        // Of many connections that were refused at once, the first renews for all.
        if let Some(other) = kept.as_ref().filter(|kept| Some(*kept) != sent) {
            return Ok(other.clone());
        }
        let challenge = challenge_of(answer).ok_or_else(|| denied(what, "it asks for no known proof"))?;
        let credential = self.credential().await.map_err(Failure::fatal)?;
        let value = match (challenge, credential) {
            (Challenge::Basic, Some(Credential::Password { user, password })) => basic(&user, &password),
            (Challenge::Basic, _) => {
                return Err(denied(what, &format!("no password for {} is configured", self.host)));
            }
            (Challenge::Bearer { realm, service, scope }, credential) => {
                let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
                let query = [("service", service.as_deref().unwrap_or_default()), ("scope", &scope)];
                format!("Bearer {}", self.token(&realm, &query, credential, what).await?)
            }
        };
        let mut value = HeaderValue::try_from(value).map_err(|err| broken(what, format!("token: {err}")))?;
        value.set_sensitive(true);
        Ok(kept.insert(value).clone())
    }

    /// The credential for this registry. A helper may block, so it runs beside.
    pub(super) async fn credential(&self) -> Result<Option<Credential>, RegistryError> {
        let (host, file) = (self.host.clone(), self.access.auth_file.clone());
        let looked_up = tokio::task::spawn_blocking(move || credentials::find(&host, file.as_deref())).await;
        looked_up.unwrap_or_else(|err| {
            let what = format!("the credentials of {}", self.host);
            Err(RegistryError::Denied { what, detail: err.to_string() })
        })
    }

    async fn token(
        &self,
        realm: &str,
        query: &[(&str, &str)],
        credential: Option<Credential>,
        what: &str,
    ) -> Result<String, Failure> {
        let realm = Url::parse(realm).map_err(|err| broken(what, format!("token service: {err}")))?;
        self.allowed(&realm, what)?;
        let host = realm.host_str().unwrap_or_default().to_owned();
        let request = self.token_request(realm, query, credential);
        let response = answered(request, &self.access, what).await?;
        let detail = format!("status {} from the token service {host}", response.status().as_u16());
        match response.status() {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS => return Err(Failure::transient(what, detail)),
            status if status.is_server_error() => return Err(Failure::transient(what, detail)),
            _ => return Err(denied(what, &detail)),
        }
        let body = Body::new(response, &self.access, what).whole(TOKEN_BYTES_MAX).await;
        let body = body.map_err(|stop| Failure::stopped(what, stop))?;
        let body =
            body.ok_or_else(|| broken(what, format!("a token of more than {TOKEN_BYTES_MAX} bytes")))?;
        let token: Token =
            serde_json::from_slice(&body).map_err(|_| broken(what, "token: no JSON".into()))?;
        let token = token.token.or(token.access_token).filter(|token| !token.is_empty());
        token.ok_or_else(|| broken(what, "the token service gave no token".into()))
    }

    fn token_request(
        &self,
        mut realm: Url,
        query: &[(&str, &str)],
        credential: Option<Credential>,
    ) -> reqwest::RequestBuilder {
        let query = query.iter().filter(|(_, value)| !value.is_empty());
        // An identity token is exchanged by POST (distribution, "OAuth2 Token Authentication").
        if let Some(Credential::IdentityToken(token)) = credential {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.extend_pairs(query).append_pair("grant_type", "refresh_token");
            form.append_pair("client_id", "switchback").append_pair("refresh_token", &token);
            let kind = "application/x-www-form-urlencoded";
            return self.http.post(realm).header(header::CONTENT_TYPE, kind).body(form.finish());
        }
        realm.query_pairs_mut().extend_pairs(query);
        match credential {
            Some(Credential::Password { user, password }) => {
                self.http.get(realm).header(header::AUTHORIZATION, basic(&user, &password))
            }
            _ => self.http.get(realm),
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn denied(what: &str, detail: &str) -> Failure {
    Failure::fatal(RegistryError::Denied { what: what.to_owned(), detail: detail.to_owned() })
}

/// The strongest challenge that can be met: a token before a password.
fn challenge_of(answer: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for header in answer.get_all(header::WWW_AUTHENTICATE) {
        let Some(challenges) = header.to_str().ok().and_then(|it| http_auth::parse_challenges(it).ok())
        else {
            continue;
        };
        for challenge in challenges {
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            } else if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = parameter(&challenge, "realm")
            {
                let (service, scope) = (parameter(&challenge, "service"), parameter(&challenge, "scope"));
                return Some(Challenge::Bearer { realm, service, scope });
            }
        }
    }
    basic
}

fn parameter(challenge: &ChallengeRef<'_>, name: &str) -> Option<String> {
    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.to_unescaped())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read_as_its_grammar_has_it() {
        let bearer = |service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: "https://auth.example/token".into(),
                service: service.map(Into::into),
                scope: scope.map(Into::into),
            })
        };
        for (header, expected) in [
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            (r#"Bearer realm="https://auth.example/token""#, bearer(None, None)),
            (
                r#"bearer service="s",scope="repository:a,b:pull",realm="https://auth.example/token""#,
                bearer(Some("s"), Some("repository:a,b:pull")),
            ),
            (r#"Basic realm="x", Bearer realm="https://auth.example/token""#, bearer(None, None)),
            (r#"Bearer service="s""#, None),
            ("Negotiate", None),
            ("\"", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(header));
            assert_eq!(challenge_of(&headers), expected, "{header}");
        }
    }
}
