//! The API's description: the same declarations that make the routes make the document.

use std::collections::BTreeMap;

use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;

use super::auth::SESSION_COOKIE;
use super::error::ErrorBody;
use super::{AdminState, accounts, connect, grants, health, integrations, keys, organizations, targets, trail};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Keyward",
        description = "The admin API: accounts, targets, agent keys, grants and the audit trail. Every answer carries \
                       `Keyward-Request-Id`; every error has the shape of `Error` and a stable code, also in \
                       `Keyward-Error`.",
        license(name = "MIT OR Apache-2.0")
    ),
    components(schemas(ErrorBody)),
    modifiers(&Schemes),
    security(("bearer" = []), ("session" = []))
)]
struct Document;

struct Schemes;

impl Modify for Schemes {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let bearer =
            HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The admin token: `kwa_…`.")).build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let session = ApiKeyValue::with_description(
            SESSION_COOKIE,
            "A dashboard session (`__Host-keyward_session` over https). What changes something needs a same-origin request.",
        );
        components.add_security_scheme("session", SecurityScheme::ApiKey(ApiKey::Cookie(session)));
    }
}

/// What every route behind a sign-in may answer beside its own results. Stands first in a route's list: what the route
/// says itself about a status wins.
pub(super) struct PlainRefusals;

impl IntoResponses for PlainRefusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        [
            ("400", "`bad_request`: the message names the field or parameter."),
            ("401", "`invalid_token`: no admin token or session, or a wrong one."),
            ("default", "Any other refusal, such as 403 `cross_site`, 413, 415, 421, 500 `internal`."),
        ]
        .into_iter()
        .map(|(status, description)| (status.to_owned(), RefOr::T(error_response(description))))
        .collect()
    }
}

/// The same, for routes of one organization.
pub(super) struct Refusals;

impl IntoResponses for Refusals {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let mut responses = PlainRefusals::responses();
        responses.insert("404".to_owned(), RefOr::T(error_response("`organization_not_found`.")));
        responses
    }
}

fn error_response(description: &str) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Error"))).build();
    ResponseBuilder::new().description(description).content("application/json", content).build()
}

/// The routes and their description, together.
pub(super) fn described() -> OpenApiRouter<AdminState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(organizations::routes())
        .merge(integrations::routes())
        .merge(connect::routes())
        .merge(accounts::routes())
        .merge(targets::routes())
        .merge(keys::routes())
        .merge(grants::routes())
        .merge(trail::routes())
        .merge(health::routes())
}

/// The API's OpenAPI document, pretty and in a stable order.
///
/// # Panics
/// Never: the document is plain data.
#[must_use]
pub fn openapi_json() -> String {
    let mut text = described().into_openapi().to_pretty_json().expect("plain data always has a JSON form");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn document() -> serde_json::Value {
        serde_json::from_str(&openapi_json()).unwrap()
    }

    fn operations(document: &serde_json::Value) -> Vec<(String, serde_json::Value)> {
        let paths = document["paths"].as_object().unwrap();
        let of_path = |(path, item): (&String, &serde_json::Value)| {
            let item = item.as_object().unwrap().clone();
            let path = path.clone();
            item.into_iter().map(move |(method, operation)| (format!("{} {path}", method.to_uppercase()), operation))
        };
        paths.iter().flat_map(of_path).collect()
    }

    #[test]
    fn the_document_lists_every_route() {
        let seen: BTreeSet<String> = operations(&document()).into_iter().map(|(route, _)| route).collect();
        let org = "/api/organizations/{org}";
        let wanted: BTreeSet<String> = [
            "GET /api/organizations".to_owned(),
            "POST /api/organizations".to_owned(),
            format!("GET {org}/integrations"),
            format!("POST {org}/integrations/{{provider}}"),
            format!("DELETE {org}/integrations/{{provider}}"),
            format!("GET {org}/integrations/{{provider}}/auth_link"),
            format!("POST {org}/integrations/{{provider}}/callback"),
            format!("GET {org}/accounts"),
            format!("GET {org}/accounts/{{id}}"),
            format!("DELETE {org}/accounts/{{id}}"),
            format!("POST {org}/accounts/{{id}}/validate"),
            format!("POST {org}/accounts/{{id}}/refresh"),
            format!("GET {org}/targets"),
            format!("POST {org}/targets"),
            format!("GET {org}/targets/{{slug}}"),
            format!("PATCH {org}/targets/{{slug}}"),
            format!("DELETE {org}/targets/{{slug}}"),
            format!("GET {org}/keys"),
            format!("POST {org}/keys"),
            format!("GET {org}/keys/{{id}}"),
            format!("PATCH {org}/keys/{{id}}"),
            format!("DELETE {org}/keys/{{id}}"),
            format!("POST {org}/keys/{{id}}/rotate"),
            format!("GET {org}/keys/{{id}}/grants"),
            format!("PUT {org}/keys/{{id}}/grants/{{target}}"),
            format!("DELETE {org}/keys/{{id}}/grants/{{target}}"),
            format!("GET {org}/audit"),
            "GET /healthz".to_owned(),
            "GET /readyz".to_owned(),
            "GET /metrics".to_owned(),
            "GET /openapi.json".to_owned(),
        ]
        .into();
        assert_eq!(seen, wanted);
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_says_how_it_refuses() {
        let mut names = BTreeSet::new();
        for (route, operation) in operations(&document()) {
            let name = operation["operationId"].as_str().unwrap_or_default().to_owned();
            assert!(!name.is_empty() && names.insert(name), "{route} needs an operationId of its own");
            assert!(operation["summary"].is_string(), "{route} needs a summary");
            let responses = operation["responses"].as_object().unwrap();
            assert_eq!(
                responses["default"]["content"]["application/json"]["schema"]["$ref"], "#/components/schemas/Error",
                "{route}"
            );
            for (status, response) in responses.iter().filter(|(status, _)| status.starts_with(['4', '5'])) {
                let schema = &response["content"]["application/json"]["schema"]["$ref"];
                assert_eq!(schema, "#/components/schemas/Error", "{route} {status}");
            }
            for name in route.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|(name, _)| name) {
                let parameters = operation["parameters"].as_array().unwrap();
                let described =
                    parameters.iter().any(|p| p["in"] == "path" && p["name"] == name && p["required"] == true);
                assert!(described, "{route} does not describe {{{name}}}");
            }
        }
    }

    #[test]
    fn the_document_is_whole_and_stable() {
        let document = document();
        assert_eq!(
            (document["info"]["title"].as_str(), document["openapi"].as_str()),
            (Some("Keyward"), Some("3.1.0"))
        );
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
        let text = openapi_json();
        assert_eq!(text, openapi_json());
        let schemas = document["components"]["schemas"].as_object().unwrap();
        for reference in text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(schemas.contains_key(reference), "{reference} is not described");
        }
        let auth_link = &document["paths"]["/api/organizations/{org}/integrations/{provider}/auth_link"]["get"];
        let words = auth_link["responses"]["404"]["description"].as_str().unwrap();
        assert!(words.contains("provider_not_found"), "a route's own words win: {words}");
    }
}
