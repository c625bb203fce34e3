//! Reads the settings of the logs, and those of the collector of spans, which are variables of the OpenTelemetry
//! specification.

use percent_encoding::percent_decode_str;
use tracing_subscriber::filter::LevelFilter;
use url::Url;

use crate::config::Error;
use crate::config::variables::{Variables, invalid};
use crate::telemetry::spans::{self, Sampler};
use crate::telemetry::{Format, Settings};

pub(super) fn logs(vars: &Variables) -> Result<Settings, Error> {
    let format = vars.one_of_two("LOG_FORMAT", [("json", Format::Json), ("pretty", Format::Pretty)])?;
    Ok(Settings {
        level: vars.parsed("LOG_LEVEL", LevelFilter::INFO, "one of error, warn, info, debug, trace, off")?,
        format: format.unwrap_or_else(Format::for_stderr),
    })
}

/// Reads the address to which spans are sent. Returns `None` if no spans are recorded.
pub(super) fn spans(vars: &Variables) -> Result<Option<spans::Settings>, Error> {
    let is_none = vars.one_of_two("OTEL_TRACES_EXPORTER", [("otlp", false), ("none", true)])?.unwrap_or(false);
    let is_off = is_none || vars.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let of_traces = vars.name_and_value("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    let of_all = vars.name_and_value("OTEL_EXPORTER_OTLP_ENDPOINT");
    let Some((name, url)) = of_traces.or(of_all).filter(|_| !is_off) else { return Ok(None) };
    if !cfg!(feature = "otel") {
        return Err(invalid(name, "this build has no traces: build it with `cargo build --release --features full`"));
    }
    // No message quotes the URL, which may contain a key.
    let url = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let mut url = url.ok_or_else(|| invalid(name, "a URL as http://127.0.0.1:4318 is expected"))?;
    // The variable for all signals contains the address of the collector without the path for traces.
    if of_traces.is_none() {
        url.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
    }
    let protocol = vars.name_and_value("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL");
    let protocol = protocol.or(vars.name_and_value("OTEL_EXPORTER_OTLP_PROTOCOL"));
    if let Some((name, other)) = protocol.filter(|(_, it)| *it != "http/protobuf") {
        let why = "http/protobuf alone is spoken, for which a collector mostly listens on port 4318";
        return Err(invalid(name, format!("`{other}`: {why}")));
    }
    let headers =
        vars.name_and_value("OTEL_EXPORTER_OTLP_TRACES_HEADERS").or(vars.name_and_value("OTEL_EXPORTER_OTLP_HEADERS"));
    Ok(Some(spans::Settings {
        endpoint: url.into(),
        headers: headers_of(headers)?,
        service_name: vars.get("OTEL_SERVICE_NAME").unwrap_or("cdc-export").to_owned(),
        attributes: pairs(vars.name_and_value("OTEL_RESOURCE_ATTRIBUTES"))?,
        sampler: sampler(vars)?,
    }))
}

/// Reads pairs and checks that they are valid HTTP headers.
fn headers_of(variable: Option<(&'static str, &str)>) -> Result<Vec<(String, String)>, Error> {
    let headers = pairs(variable)?;
    let is_name =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
    let is_value = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    match variable {
        Some((name, _)) if !headers.iter().all(|(key, value)| is_name(key) && is_value(value)) => {
            Err(invalid(name, "a header's name or value has a character that none can have"))
        }
        _ => Ok(headers),
    }
}

/// Parses `name=value` pairs separated by commas. Special characters are percent-encoded.
fn pairs(variable: Option<(&'static str, &str)>) -> Result<Vec<(String, String)>, Error> {
    let Some((name, value)) = variable else { return Ok(Vec::new()) };
    let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
    let pair = |part: &str| {
        let (key, value) = part.split_once('=')?;
        let value = percent_decode_str(value.trim()).decode_utf8().ok()?.into_owned();
        Some((key.trim().to_owned(), value)).filter(|(key, _)| !key.is_empty())
    };
    // The message doesn't quote the values, which may be keys.
    let all: Option<Vec<_>> = parts.map(pair).collect();
    all.ok_or_else(|| invalid(name, "pairs as name=value are expected, with commas between them"))
}

fn sampler(vars: &Variables) -> Result<Sampler, Error> {
    let name = vars.get("OTEL_TRACES_SAMPLER").unwrap_or("parentbased_always_on");
    let own = name.strip_prefix("parentbased_");
    let part = match own.unwrap_or(name) {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => vars.parsed("OTEL_TRACES_SAMPLER_ARG", 1.0, "a number from 0 to 1")?,
        _ => {
            let known = "always_on, always_off, traceidratio, or one of these behind `parentbased_`";
            return Err(invalid("OTEL_TRACES_SAMPLER", format!("`{name}` is none of {known}")));
        }
    };
    if !(0.0..=1.0).contains(&part) {
        return Err(invalid("OTEL_TRACES_SAMPLER_ARG", format!("`{part}` is not a number from 0 to 1")));
    }
    Ok(Sampler { part, follows_caller: own.is_some() })
}

#[cfg(feature = "otel")]
#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
    const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
    const PART: &str = "OTEL_TRACES_SAMPLER_ARG";

    fn with(values: &[(&str, &str)]) -> Variables {
        Variables(values.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    fn refused(values: &[(&str, &str)]) -> String {
        spans(&with(&[&[(ENDPOINT, "http://127.0.0.1:4318")], values].concat())).unwrap_err().to_string()
    }

    #[test]
    fn without_a_collector_there_are_no_spans() {
        let there = (ENDPOINT, "http://127.0.0.1:4318");
        for values in [
            &[][..],
            &[(HEADERS, "a=b"), ("OTEL_SERVICE_NAME", "x")],
            &[there, ("OTEL_SDK_DISABLED", "TRUE")],
            &[there, ("OTEL_TRACES_EXPORTER", "none")],
        ] {
            assert!(spans(&with(values)).unwrap().is_none(), "{values:?}");
        }
    }

    #[test]
    fn a_collector_is_named_for_all_signals_or_for_traces() {
        let at = |values: &[(&str, &str)]| spans(&with(values)).unwrap().unwrap().endpoint;
        assert_eq!(at(&[(ENDPOINT, "http://127.0.0.1:4318/")]), "http://127.0.0.1:4318/v1/traces");
        assert_eq!(at(&[(ENDPOINT, "https://x/otlp")]), "https://x/otlp/v1/traces");
        assert_eq!(at(&[(ENDPOINT, "http://x:4318?key=K")]), "http://x:4318/v1/traces?key=K");
        assert_eq!(at(&[(ENDPOINT, "http://x"), (TRACES_ENDPOINT, "http://y/in/")]), "http://y/in/");
    }

    #[test]
    fn headers_attributes_and_the_sampler_are_read() {
        let found = spans(&with(&[
            (ENDPOINT, "http://x"),
            (HEADERS, "authorization=Bearer%20a%3D%2C, x-b = c=d ,"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod"),
            (SAMPLER, "traceidratio"),
            (PART, "0.25"),
        ]));
        let found = found.unwrap().unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(found.headers, [pair("authorization", "Bearer a=,"), pair("x-b", "c=d")]);
        assert_eq!(found.attributes, [pair("deployment.environment.name", "prod")]);
        assert_eq!(found.sampler, Sampler { part: 0.25, follows_caller: false });
        assert!(!format!("{found:?}").contains("Bearer"));
    }

    #[test]
    fn invalid_values_are_refused_and_no_secret_is_quoted() {
        for (values, says) in [
            (&[(ENDPOINT, "127.0.0.1:4318?key=secret")][..], ENDPOINT),
            (&[(TRACES_ENDPOINT, "grpc://u:secret@x")], TRACES_ENDPOINT),
            (&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], "port 4318"),
            (&[(HEADERS, "secret")], HEADERS),
            (&[(HEADERS, "=secret")], HEADERS),
            (&[(HEADERS, "a=secret%ff")], HEADERS),
            (&[(HEADERS, "a=secret%0d%0ab:c")], HEADERS),
            (&[("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a secret=b")], "OTLP_TRACES_HEADERS"),
            (&[("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")], "OTLP_TRACES_PROTOCOL"),
            (&[("OTEL_TRACES_EXPORTER", "zipkin")], "OTEL_TRACES_EXPORTER"),
            (&[(SAMPLER, "jaeger_remote")], SAMPLER),
            (&[(SAMPLER, "parentbased_traceidratio"), (PART, "1.5")], PART),
            (&[(SAMPLER, "traceidratio"), (PART, "half")], PART),
        ] {
            let why = refused(values);
            assert!(why.contains(says) && !why.contains("secret"), "{why}");
        }
    }
}
