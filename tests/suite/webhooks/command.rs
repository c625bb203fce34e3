//! `cdc-export deliveries`.

use serde_json::{Value, json};

use super::{Answer, Operator, Receiver, deliveries};
use crate::harness::{Database, eventually};

#[tokio::test]
async fn a_dead_delivery_is_listed_and_redelivered() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let receiver = Receiver::start().await;
    receiver.answers([Answer::Status(410)]);
    let operator = Operator::with(&[receiver.block("hook", "")]);
    let service = operator.start(&database).service().await;
    service.export("full", "a").await;
    let [dead] = eventually("one is dead", async || deliveries(&service, "?status=dead").await.try_into().ok()).await;
    let dead: Value = dead;
    let id = dead["deliveryId"].as_str().unwrap();
    let run = async |arguments: &[&str]| operator.0.command(&database, &[&["deliveries"], arguments].concat()).await;
    let server = ["--server", &service.address];

    let (code, listed, said) = run(&["list"]).await;
    assert_eq!(code, 0, "{said}");
    let lines: Vec<_> = listed.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("DELIVERY ") && lines[1].starts_with(id), "{listed}");
    assert!(lines[1].contains(" dead ") && lines[1].contains("it answered 410"), "{listed}");
    assert_eq!(run(&[&["list"], &server[..]].concat()).await.1, listed);
    for of_server in [&[][..], &server] {
        let (_, printed, _) =
            run(&[&["list", "--status", "dead", "--endpoint", "hook", "--json"], of_server].concat()).await;
        assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), dead);
        for (choice, value) in [("--status", "pending"), ("--endpoint", "other")] {
            assert_eq!(
                run(&[&["list", "--json", choice, value], of_server].concat()).await,
                (0, String::new(), String::new())
            );
        }
        let unknown = "01a1f83b-6d1e-7c1a-9d4e-2f6f1f0c9a11";
        let (code, _, said) = run(&[&["redeliver", unknown], of_server].concat()).await;
        assert!(code == 1 && said.contains(unknown) && said.contains("there is no delivery with this id"), "{said}");
        assert_eq!(run(&[&["redeliver", "x"], of_server].concat()).await.0, 2);
    }

    for (told, of_server) in [(2, &[][..]), (3, &server)] {
        let (code, printed, said) = run(&[&["redeliver", id], of_server].concat()).await;
        assert_eq!((code, printed.trim()), (0, &*format!("{id} is told again.")), "{said}");
        let heard = receiver.hears(told).await;
        assert!(heard.iter().all(|heard| json!(heard.id) == dead["deliveryId"]));
        eventually("it is delivered", async || deliveries(&service, "?status=delivered").await.pop()).await;
    }
    for _ in 0..2 {
        service.export("delta", "a").await;
    }
    for of_server in [&[][..], &server] {
        let (_, printed, said) = run(&[&["list", "--limit", "2", "--json"], of_server].concat()).await;
        assert!(printed.lines().count() == 2 && said.contains("there are more: --limit"), "{printed} {said}");
    }
    service.stop().await;
}

#[tokio::test]
async fn a_receiver_is_tried_with_one_event() {
    let database = Database::new().await;
    let receiver = Receiver::start().await;
    let nobody = Receiver { port: 1, ..Receiver::default() };
    let operator = Operator::with(&[receiver.block("hook", ""), nobody.block("closed", "")]);
    let test = async |name: &str| operator.start(&database).arguments(&["deliveries", "test", name]).output().await;

    let (code, printed, said) = test("hook").await;
    assert_eq!((code, printed.as_str(), said.as_str()), (0, "hook answered 200.\n", ""));
    let [heard] = receiver.heard().try_into().ok().unwrap();
    assert!(heard.signed && heard.event["type"] == "cdc-export.test.v1", "{}", heard.event);
    assert_eq!((&heard.event["id"], &heard.event["data"]), (&json!(heard.id), &json!({})));
    receiver.answers([Answer::Status(503)]);
    let (code, printed, said) = test("hook").await;
    assert_eq!((code, printed.as_str(), said.as_str()), (1, "", "cdc-export: hook: it answered 503\n"));
    let (code, _, said) = test("closed").await;
    assert!(code == 1 && said.contains("closed: connection refused"), "{said}");
    let (code, _, said) = test("hok").await;
    assert!(code == 2 && said.contains("is it `hook`?") && said.contains("hook, closed"), "{said}");
    let unset = operator.start(&database).with("HOOK_SECRET", "").arguments(&["deliveries", "test", "hook"]);
    let (code, _, said) = unset.output().await;
    assert!(code == 2 && said.contains("HOOK_SECRET"), "{said}");
}

#[tokio::test]
async fn a_chat_gets_a_sentence_without_a_signature() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let receiver = Receiver::start().await;
    let block = receiver.block("chat", "shape = \"slack\"\nevents = [\"export.completed\"]");
    let operator = Operator::with(&[block.replace("secret_env = \"HOOK_SECRET\"\n", "")]);
    let service = operator.start(&database).with("HOOK_SECRET", "").service().await;
    let (job, _) = service.export("full", "search").await;
    let [heard] = receiver.hears(1).await.try_into().ok().unwrap();
    let id = job["jobId"].as_str().unwrap();
    let text = format!("cdc-export: export completed: full of users for search, 5 rows ({id})");
    assert_eq!((heard.event, heard.signed), (json!({ "text": text }), false));
    service.stop().await;
}
