//! The bodies of posts: the CloudEvent itself, or a sentence in the form that a chat expects.

use serde_json::{Value, json};

use crate::delivery::Event;

pg_rows::words! {
    /// The form of a post's body.
    BodyShape, "a shape" {
        /// The CloudEvent.
        CloudEvents = "cloudevents",
        /// An object with `text`, as Slack, Mattermost and Google Chat expect it.
        Slack = "slack",
        /// A message with an Adaptive Card, as a workflow of Microsoft Teams expects it.
        Teams = "teams",
    }
}

impl BodyShape {
    pub(super) fn media_type(self) -> &'static str {
        match self {
            BodyShape::CloudEvents => "application/cloudevents+json",
            BodyShape::Slack | BodyShape::Teams => "application/json",
        }
    }

    pub(super) fn body(self, event: &Event) -> String {
        match self {
            BodyShape::CloudEvents => event.body.clone(),
            BodyShape::Slack => {
                // Slack reads `<!channel>` and `<https://…>` as commands.
                let text = sentence(event).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
                json!({ "text": text }).to_string()
            }
            BodyShape::Teams => {
                let text = json!({ "type": "TextBlock", "text": sentence(event), "wrap": true });
                let card = json!({ "type": "AdaptiveCard", "version": "1.4", "body": [text] });
                let content_type = "application/vnd.microsoft.card.adaptive";
                let attachment = json!({ "contentType": content_type, "content": card });
                json!({ "type": "message", "attachments": [attachment] }).to_string()
            }
        }
    }
}

/// The most characters of a sentence. Chats take messages of 28 KB and more.
const MOST_CHARACTERS: usize = 1_000;

/// Says in one sentence what has ended, and why it failed. Nothing in it is a link or calls anybody: an error may quote
/// names that somebody chose.
fn sentence(event: &Event) -> String {
    let text: String = plain_sentence(event).chars().take(MOST_CHARACTERS).collect();
    let text: String = text.chars().map(|sign| if sign.is_control() { ' ' } else { sign }).collect();
    text.replace('@', "@\u{200b}").replace("](", "]\u{200b}(")
}

fn plain_sentence(event: &Event) -> String {
    let data = match serde_json::from_str(&event.body) {
        Ok(Value::Object(mut body)) => body.remove("data").unwrap_or_default(),
        _ => Value::Null,
    };
    let text = |pointer: &str| data.pointer(pointer).and_then(Value::as_str);
    let Some(id) = text("/jobId") else {
        return "cdc-export: this is a test, and nothing has happened".to_owned();
    };
    let end = event.event.name().replacen('.', " ", 1);
    let consumer = event.consumer.as_ref().map(|consumer| format!(" for {consumer}")).unwrap_or_default();
    let kind = text("/exportType").unwrap_or_default();
    let datasets = match data["exports"].as_array().map(Vec::as_slice) {
        Some([export]) => export["dataset"].as_str().unwrap_or_default().to_owned(),
        Some(exports) => format!("{} datasets", exports.len()),
        None => event.dataset.clone(),
    };
    let rows = data["rowsExported"].as_u64().map(|rows| format!(", {rows} rows")).unwrap_or_default();
    let error = text("/error/code").zip(text("/error/detail"));
    let outcome = match error {
        Some((code, detail)) => {
            let dataset = text("/error/dataset").map(|dataset| format!("{dataset}: ")).unwrap_or_default();
            format!(": {dataset}{code}: {detail}")
        }
        None => rows,
    };
    format!("cdc-export: {end}: {kind} of {datasets}{consumer}{outcome} ({id})")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::event::EventType;
    use crate::job::Status;

    fn event(end: Status, data: &Value) -> Event {
        Event {
            id: Uuid::nil(),
            event: EventType { end },
            dataset: "orders".to_owned(),
            consumer: Some("search".to_owned()),
            kind: "cdc-export.x.v1".to_owned(),
            body: json!({ "specversion": "1.0", "data": data }).to_string(),
            trace: None,
        }
    }

    #[test]
    fn a_chat_gets_a_sentence() {
        let done = json!({ "jobId": "7", "exportType": "delta", "rowsExported": 12, "error": null });
        let done = event(Status::Completed, &done);
        assert_eq!(sentence(&done), "cdc-export: export completed: delta of orders for search, 12 rows (7)");
        let error = json!({ "code": "lost", "detail": "<!channel> & more", "dataset": "items" });
        let failed = json!({
            "jobId": "8", "exportType": "full", "rowsExported": 0, "exports": [{ "dataset": "items" }, {}], "error": error
        });
        let failed = event(Status::Failed, &failed);
        let expected =
            "cdc-export: export failed: full of 2 datasets for search: items: lost: &lt;!channel&gt; &amp; more (8)";
        assert_eq!(BodyShape::Slack.body(&failed), json!({ "text": expected }).to_string());
        let card: Value = serde_json::from_str(&BodyShape::Teams.body(&done)).unwrap();
        assert_eq!(card["attachments"][0]["content"]["body"][0]["text"], sentence(&done));
        assert_eq!(BodyShape::CloudEvents.body(&done), done.body);
    }

    #[test]
    fn nothing_in_a_sentence_calls_anybody_and_it_has_an_end() {
        let detail = format!("[pay](http://evil.example)\n@channel {}", "<".repeat(9_000));
        let error = json!({ "code": "lost", "detail": detail });
        let failed = json!({ "jobId": "8", "exportType": "full", "rowsExported": 0, "error": error });
        let failed = event(Status::Failed, &failed);
        let said = sentence(&failed);
        assert!(said.contains("[pay]\u{200b}(http://evil.example) @\u{200b}channel <<"), "{said}");
        assert!(BodyShape::Slack.body(&failed).len() < 5_000 && BodyShape::Teams.body(&failed).len() < 5_000);
    }

    #[test]
    fn a_test_says_that_it_is_one() {
        assert!(sentence(&Event::test()).contains("this is a test"));
    }
}
