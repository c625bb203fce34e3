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
