//! `/docs`: the document of the API for people, one page that is made from it. It fetches nothing but its own stylesheet and runs
//! no script, so that it reads the same without a network.

use std::sync::OnceLock;

use axum::Extension;
use axum::http::{HeaderName, header};
use axum::response::IntoResponse;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use crate::http::openapi::RouterDocument;

const STYLE: &str = include_str!("docs.css");
/// What the page may fetch: its stylesheet.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Where the examples of calls go: the port that the service has unless somebody says otherwise.
const HERE: &str = "http://localhost:8080";

/// Read this description as a page
#[utoipa::path(
    get, path = "/docs", operation_id = "getDocs", tag = "service",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")),
)]
pub(crate) async fn page(Extension(document): Extension<RouterDocument>) -> impl IntoResponse {
    // A process has the page of one router alone.
    static PAGE: OnceLock<String> = OnceLock::new();
    let page = PAGE.get_or_init(|| Reader(&document.value).page().into_string());
    let headers: [(HeaderName, &str); 4] = [
        // It holds no data and may be kept; another version says something else.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, page.as_str())
}

/// The page's stylesheet, which the page alone asks for, and which is no call of the API.
pub(crate) async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE)
}

/// A document, as a page shows it. What it lacks is left out.
struct Reader<'d>(&'d Value);

/// A call of the document.
struct Call<'d> {
    path: &'d str,
    method: String,
    says: &'d Value,
}

impl<'d> Reader<'d> {
    fn page(&self) -> Markup {
        let info = &self.0["info"];
        let title = format!("{}: the API", text(&info["title"]));
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (title) }
                    link rel="stylesheet" href="/docs/style.css";
                }
                body {
                    a.skip href="#calls" { "Skip the list of calls" }
                    details.index open { summary { "Calls" } (self.index()) }
                    main #calls tabindex="-1" {
                        h1 { (title) " " small { (text(&info["version"])) } }
                        (prose(text(&info["description"])))
                        p { "The examples speak to " code { (HERE) } ". Where the service wants a key, add "
                            code { "-H \"Authorization: Bearer $CDC_EXPORT_KEY\"" } ". For programs this page is "
                            a href="/openapi.json" { "openapi.json" } ", OpenAPI " (text(&self.0["openapi"])) "." }
                        @for tag in items(&self.0["tags"]) {
                            section id=(text(&tag["name"])) {
                                h2 { (text(&tag["name"])) }
                                (prose(text(&tag["description"])))
                                @for call in self.calls(text(&tag["name"])) { (self.call(&call)) }
                            }
                        }
                        section #schemas {
                            h2 { "schemas" }
                            @for (name, schema) in members(&self.0["components"]["schemas"]) {
                                details.schema id={ "schema-" (name) } {
                                    summary { h3 { code { (name) } } }
                                    (prose(text(&schema["description"])))
                                    @if schema.get("properties").is_none() { p.kind { (self.kind(schema)) } }
                                    (self.properties(schema))
                                    @if let Some(example) = schema.get("example") { pre { (format!("{example:#}")) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn index(&self) -> Markup {
        html! {
            nav aria-label="Calls" {
                ul { li { a href="/" { "The page" } } }
                @for tag in items(&self.0["tags"]) {
                    a.tag href={ "#" (text(&tag["name"])) } { (text(&tag["name"])) }
                    ul {
                        @for call in self.calls(text(&tag["name"])) {
                            li { a href={ "#" (text(&call.says["operationId"])) } {
                                span.method { (call.method) } " " (call.path)
                            } }
                        }
                    }
                }
                a.tag href="#schemas" { "schemas" }
            }
        }
    }

    /// The calls of a group, in the order of the document.
    fn calls(&self, tag: &str) -> Vec<Call<'d>> {
        let calls = members(&self.0["paths"]).flat_map(|(path, item)| {
            members(item).map(|(method, says)| Call { path, method: method.to_uppercase(), says })
        });
        calls.filter(|call| items(&call.says["tags"]).any(|own| own == tag)).collect()
    }

    fn call(&self, call: &Call<'d>) -> Markup {
        let scopes: Vec<_> = items(&call.says["security"]).flat_map(|key| items(&key["key"])).map(text).collect();
        let body = &call.says["requestBody"];
        let schema = &body["content"]["application/json"]["schema"];
        let parameters = items(&call.says["parameters"]).map(|parameter| self.resolved(parameter));
        let parameters: Vec<_> =
            parameters.map(|parameter| (self.parameter(parameter), text(&parameter["description"]))).collect();
        let answers = members(&call.says["responses"]).map(|(status, answer)| (status, self.resolved(answer)));
        let (problems, answers): (Vec<_>, Vec<_>) = answers.partition(|(status, _)| status.starts_with(['4', '5']));
        html! {
            article id=(text(&call.says["operationId"])) {
                h3 { span.method data-method=(call.method) { (call.method) } " " code { (call.path) } }
                p.summary { (text(&call.says["summary"])) }
                (prose(text(&call.says["description"])))
                p.scope { @if scopes.is_empty() { "Needs no key." } @else { "Scope " code { (scopes.join(", ")) } } }
                @if !parameters.is_empty() { h4 { "Parameters" } (meanings(parameters)) }
                @if !schema.is_null() {
                    h4 { "Body " span.kind {
                        (self.kind(schema)) @if body["required"] == true { ", required" } @else { ", may be left out" }
                    } }
                    @let properties = self.properties(self.resolved(schema)).into_string();
                    // Several calls have the same body.
                    @if !properties.is_empty() { details { summary { "Its members" } (PreEscaped(properties)) } }
                }
                h4 { "Example" }
                pre { (self.curl(call)) }
                h4 { "Answers" }
                @for (status, answer) in answers { (self.answer(status, answer)) }
                @if !problems.is_empty() {
                    // Most calls have most of them.
                    details.problems {
                        summary { "Problems: " @for (i, (status, _)) in problems.iter().enumerate() {
                            @if i > 0 { ", " } code { (status) }
                        } }
                        @for (status, problem) in problems { (self.answer(status, problem)) }
                    }
                }
            }
        }
    }

    fn answer(&self, status: &str, answer: &Value) -> Markup {
        let description = text(&answer["description"]);
        let (first, rest) = description.split_once(":\n").unwrap_or((description, ""));
        let headers = members(&answer["headers"]).map(|(name, header)| {
            (html! { code { (name) } " " span.kind { "header" } }, text(&self.resolved(header)["description"]))
        });
        html! {
            details.answer {
                summary { code { (status) } " " (inline(first)) }
                (prose(rest))
                @for (media_type, content) in members(&answer["content"]) {
                    p { code { (media_type) } @if content["schema"].get("$ref").is_some() { ": " (self.kind(&content["schema"])) } }
                }
                (meanings(headers))
            }
        }
    }

    /// What a parameter is, without what it means.
    fn parameter(&self, parameter: &Value) -> Markup {
        html! {
            code { (text(&parameter["name"])) } " "
            span.kind { "in " (text(&parameter["in"])) ", " (self.kind(&parameter["schema"])) }
            @if parameter["required"] == true { " " strong { "required" } }
        }
    }

    /// An object's members, those that are always there first and in their order.
    fn properties(&self, schema: &Value) -> Markup {
        let required: Vec<_> = items(&schema["required"]).map(text).collect();
        let mut properties: Vec<_> = members(&schema["properties"]).collect();
        properties.sort_by_key(|(name, _)| required.iter().position(|other| other == name).unwrap_or(usize::MAX));
        meanings(properties.into_iter().map(|(name, property)| {
            let term = html! {
                code { (name) } " " span.kind { (self.kind(property)) }
                @if required.contains(&name) { " " strong { "always" } }
            };
            (term, self.description(property))
        }))
    }

    /// A property's description, which lies one deeper where it may be null.
    fn description(&self, property: &'d Value) -> &'d str {
        let own =
            property.get("description").or_else(|| items(&property["oneOf"]).find_map(|one| one.get("description")));
        own.map_or("", text)
    }

    /// What a value is, in a few words.
    fn kind(&self, schema: &Value) -> Markup {
        if let Some(name) = schema["$ref"].as_str().and_then(|to| to.rsplit('/').next()) {
            return html! { a href={ "#schema-" (name) } { (name) } (limits(schema)) };
        }
        let either: Vec<_> = ["oneOf", "anyOf"].iter().flat_map(|word| items(&schema[*word])).collect();
        if !either.is_empty() {
            return html! { @for (i, one) in either.iter().enumerate() { @if i > 0 { " or " } (self.kind(one)) } };
        }
        let types: Vec<_> =
            items(&schema["type"]).chain(schema["type"].as_str().map(|_| &schema["type"])).map(text).collect();
        html! {
            @if let Some(items) = schema.get("items") { "list of " (self.kind(items)) }
            @else if types.is_empty() { "any value" }
            @else { (types.join(" or ")) }
            @if let Some(format) = schema["format"].as_str() { " (" (format) ")" }
            (limits(schema))
        }
    }

    /// What a reference stands for; what is none, for itself.
    fn resolved<'v>(&self, value: &'v Value) -> &'v Value
    where
        'd: 'v,
    {
        let to = value["$ref"].as_str().and_then(|to| self.0.pointer(to.trim_start_matches('#')));
        to.unwrap_or(value)
    }

    /// The call, as a line for a shell.
    fn curl(&self, call: &Call<'d>) -> String {
        let (mut path, mut query, mut line) = (call.path.to_owned(), Vec::new(), "curl".to_owned());
        match (text(&call.says["operationId"]), call.method.as_str()) {
            ("downloadExport", _) => line.push_str(" -fOJ"),
            ("followExport", _) => line.push_str(" -N"),
            (_, "GET") => {}
            (_, method) => line.push_str(&format!(" -X {method}")),
        }
        for parameter in items(&call.says["parameters"]).map(|parameter| self.resolved(parameter)) {
            let (name, example) = (text(&parameter["name"]), word(&parameter["example"]));
            match text(&parameter["in"]) {
                "path" => path = path.replace(&format!("{{{name}}}"), &example),
                "query" if !example.is_empty() => query.push(format!("{name}={example}")),
                "header" if parameter["required"] == true => line.push_str(&format!(" -H '{name}: {example}'")),
                _ => {}
            }
        }
        let body = self.resolved(&call.says["requestBody"]["content"]["application/json"]["schema"]);
        if let Some(example) = body.get("example") {
            line.push_str(&format!(" \\\n  -H 'Content-Type: application/json' -d '{example}' \\\n "));
        }
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        format!("{line} '{HERE}{path}{query}'")
    }
}

/// A list of terms and what they mean; none where there are none.
fn meanings<'t>(terms: impl IntoIterator<Item = (Markup, &'t str)>) -> Markup {
    let mut terms = terms.into_iter().peekable();
    html! {
        @if terms.peek().is_some() {
            dl { @for (term, meaning) in terms { dt { (term) } dd { (prose(meaning)) } } }
        }
    }
}

/// What a value must keep to, beside its type.
fn limits(schema: &Value) -> Markup {
    let limits = [("minimum", "from"), ("maximum", "to"), ("pattern", "as"), ("default", "default")];
    html! {
        @for (member, name) in limits {
            @if let Some(limit) = schema.get(member) { ", " (name) " " code { (word(limit)) } }
        }
    }
}

/// Paragraphs and lists, of as much Markdown as the document's texts have.
fn prose(markdown: &str) -> Markup {
    html! {
        @for block in markdown.split("\n\n").map(|block| block.trim_start_matches('\n')).filter(|block| !block.is_empty()) {
            @if block.starts_with("- ") {
                ul { @for item in block.trim_start_matches("- ").split("\n- ") { li { (inline(item)) } } }
            } @else {
                p { (inline(block)) }
            }
        }
    }
}

/// A text, with its code between backticks.
fn inline(markdown: &str) -> Markup {
    let parts = markdown.split('`').enumerate();
    html! { @for (i, part) in parts { @if i % 2 == 1 { code { (part) } } @else { (part) } } }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A value as a word: a string without its quotes.
fn word(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn members(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document() -> RouterDocument {
        RouterDocument::of(crate::http::routes().into_openapi())
    }

    #[test]
    fn texts_are_shown_as_texts() {
        let page = Reader(&json!({
            "info": { "title": "<script>", "description": "a `<b>`\n\n- one\n- `two` & three" },
            "tags": [{ "name": "\"><img>" }],
        }));
        let page = page.page().into_string();
        assert!(!page.contains("<script>") && !page.contains("<img>") && !page.contains("<b>"), "{page}");
        assert!(
            page.contains("<p>a <code>&lt;b&gt;</code></p><ul><li>one</li><li><code>two</code> &amp; three</li></ul>")
        );
    }

    #[test]
    fn there_is_no_list_of_nothing() {
        let page = Reader(&document().value).page().into_string();
        assert!(page.contains("<dl><dt>") && !page.contains("<dl></dl>"));
    }

    #[test]
    fn what_many_calls_have_is_closed_at_first() {
        let page = Reader(&document().value).page().into_string();
        let (_, call) = page.split_once("<article id=\"startDelta\">").unwrap();
        let (open, closed) =
            call.split_once("</article>").unwrap().0.split_once("<details class=\"problems\">").unwrap();
        assert!(closed.starts_with("<summary>Problems: <code>400</code>, ") && closed.contains("<code>409</code>"));
        assert!(open.contains("<code>202</code>") && !open.contains("<code>409</code>"), "{open}");
        assert!(open.contains("<details><summary>Its members</summary><dl>"), "{open}");
        assert!(page.contains("<details class=\"schema\" id=\"schema-Job\">"));
        assert_eq!(
            page.matches("<details open").count() + page.matches("open>").count(),
            1,
            "the list of calls alone is open"
        );
    }

    #[test]
    fn a_call_is_a_line_for_a_shell() {
        let document = document();
        let reader = Reader(&document.value);
        let line = |tag: &str, id: &str| {
            let call = reader.calls(tag).into_iter().find(|call| call.says["operationId"] == id).unwrap();
            reader.curl(&call)
        };
        assert_eq!(
            line("exports", "startDelta"),
            "curl -X POST -H 'X-Consumer-ID: search' \\\n  -H 'Content-Type: application/json' \
             -d '{\"compression\":\"zstd\",\"format\":\"ndjson\"}' \\\n  'http://localhost:8080/exports/delta'"
        );
        assert_eq!(
            line("exports", "getExport"),
            "curl 'http://localhost:8080/exports/01a1f83b-3f18-718b-bb88-fdeaa3d54f3e?wait=30'"
        );
    }
}
