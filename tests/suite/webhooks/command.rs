//! `cdc-export deliveries`.

use serde_json::json;

use super::{Answer, Operator, Receiver};
use crate::harness::{Database, ends, silent};

#[tokio::test]
async fn a_receiver_is_tried_with_one_event() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let nobody = Receiver { port: 1, ..Receiver::default() };
    let operator = Operator::with(&[receiver.block("hook", ""), nobody.block("closed", "")]);
    let test = async |name: &str| operator.start(&database).arguments(&["deliveries", "test", name]).output().await;

    assert_eq!(silent(test("hook").await), "hook answered 200.\n");
    let [heard] = receiver.heard().try_into().ok().unwrap();
    assert!(heard.signed && heard.event["type"] == "cdc-export.test.v1", "{}", heard.event);
    assert_eq!((&heard.event["id"], &heard.event["data"]), (&json!(heard.id), &json!({})));
    receiver.answers([Answer::Status(503)]);
    let (code, printed, said) = test("hook").await;
    assert_eq!((code, printed.as_str(), said.as_str()), (1, "", "cdc-export: hook: it answered 503\n"));
    ends(test("closed").await, 1, "closed: connection refused");
    let (code, _, said) = test("hok").await;
    assert!(code == 2 && said.contains("is it `hook`?") && said.contains("hook, closed"), "{said}");
    let unset = operator.start(&database).with("HOOK_SECRET", "").arguments(&["deliveries", "test", "hook"]);
    ends(unset.output().await, 2, "HOOK_SECRET");
}

#[tokio::test]
async fn a_chat_gets_a_sentence_without_a_signature() {
    let database = Database::with_users(5).await;
    let receiver = Receiver::start().await;
    let block = receiver.block("chat", "shape = \"slack\"\nevents = [\"export.completed\"]");
    let operator = Operator::with(&[block.replace("secret_env = \"HOOK_SECRET\"\n", "")]);
    let service = operator.start(&database).with("HOOK_SECRET", "").service().await;
    let (job, _) = service.export("full", "search").await;
    let [heard] = receiver.hears(1).await.try_into().ok().unwrap();
    let id = job["jobId"].as_str().unwrap();
    let text = format!("cdc-export: export completed: full of users for search, 5 rows ({id})");
    assert_eq!((heard.event, heard.signed), (json!({ "text": text }), false));
}
