//! The request of an export.

use cdc_manifest::{After, ConsumerId};
use http::header;
use pg_rows::encoding::Encoding;
use pg_rows::export_type::ExportType;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::answer::CallError;

/// The request of an export, in the terms of the API.
#[derive(Clone, Debug)]
pub struct ExportRequest {
    /// `None` for an ad-hoc export.
    pub consumer: Option<ConsumerId>,
    /// `None`: the service uses its default dataset.
    pub dataset: Option<String>,
    pub export_type: ExportType,
    pub encoding: Encoding,
    /// `None` uses the dataset's size.
    pub max_file_bytes: Option<u64>,
    /// `None` uses the dataset's choice.
    pub skip_empty: Option<bool>,
    /// The export that the caller loaded last. `None` if the service need not check it.
    pub after: Option<After>,
}

impl ExportRequest {
    pub fn new(consumer: Option<ConsumerId>, export_type: ExportType, encoding: Encoding) -> ExportRequest {
        let (dataset, max_file_bytes, skip_empty, after) = (None, None, None, None);
        ExportRequest { consumer, dataset, export_type, encoding, max_file_bytes, skip_empty, after }
    }

    /// Returns the call that submits the request. It may be sent twice.
    pub fn call(&self) -> Result<http::Request<String>, CallError> {
        let mut body = self.body();
        if let Some(dataset) = &self.dataset {
            body["dataset"] = dataset.as_str().into();
        }
        match &self.after {
            None => {}
            Some(After::Nothing) => body["after"] = Value::Null,
            Some(After::Export { job, sha256 }) => {
                body["after"] = job.to_string().into();
                if let Some(sha256) = sha256 {
                    body["afterSha256"] = sha256.as_str().into();
                }
            }
        }
        self.submission(&body)
    }

    /// Returns the call that submits a job of these datasets in place of the request's own. It may be sent twice. Each
    /// export is a full one where only that goes on.
    pub fn call_for(&self, datasets: &[&str]) -> Result<http::Request<String>, CallError> {
        let mut body = self.body();
        body["datasets"] = datasets.into();
        body["heal"] = true.into();
        self.submission(&body)
    }

    /// Returns the members that name no dataset and no export.
    fn body(&self) -> Value {
        let mut body = json!({ "format": self.encoding.format, "compression": self.encoding.compression });
        if let Some(bytes) = self.max_file_bytes {
            body["maxFileBytes"] = bytes.into();
        }
        if let Some(skip_empty) = self.skip_empty {
            body["skipEmpty"] = skip_empty.into();
        }
        body
    }

    fn submission(&self, body: &Value) -> Result<http::Request<String>, CallError> {
        let call = match &self.consumer {
            Some(consumer) => {
                http::Request::post(format!("/exports/{}", self.export_type)).header("x-consumer-id", consumer.as_str())
            }
            // An ad-hoc export, which is always a full one.
            None => http::Request::post("/exports"),
        };
        let call =
            call.header("idempotency-key", Uuid::new_v4().to_string()).header(header::CONTENT_TYPE, "application/json");
        Ok(call.body(body.to_string())?)
    }
}
