//! A RabbitMQ for one test, and its client.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use lapin::options::{BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{eventually, folder_in_memory, free_port, option_env};

/// Path of the server. The program of this name in the PATH is for root, and switches to another account.
pub(crate) const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

pub(crate) struct Broker {
    folder: TempDir,
    port: u16,
    /// Ports of the Erlang node and of its port mapper.
    node_port: u16,
    mapper_port: u16,
    mapper: Child,
    server: Option<Child>,
}

impl Broker {
    pub(crate) async fn start() -> Broker {
        let [port, node_port, mapper_port] = [(); 3].map(|()| free_port());
        let mapper = Command::new("epmd")
            .args(["-port", &mapper_port.to_string(), "-address", "127.0.0.1"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the package `rabbitmq-server` brings it");
        let mut broker = Broker { folder: folder_in_memory(), port, node_port, mapper_port, mapper, server: None };
        broker.starts("").await;
        broker
    }

    /// Restarts the broker with additional settings.
    pub(crate) async fn starts(&mut self, settings: &str) {
        let at = |file: &str| self.folder.path().join(file);
        let Broker { port, node_port, mapper_port, .. } = self;
        std::fs::write(at("rabbitmq.conf"), format!("listeners.tcp.1 = 127.0.0.1:{port}\n{settings}\n")).unwrap();
        std::fs::write(at("plugins"), "[].").unwrap();
        let log = std::fs::File::create(at("log")).unwrap();
        let mut command = Command::new(SERVER);
        command
            .env_clear()
            .env("PATH", option_env("PATH").unwrap())
            .env("HOME", self.folder.path())
            .env("RABBITMQ_NODENAME", format!("test{port}@localhost"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins"))
            .env("RABBITMQ_MNESIA_BASE", at("data"))
            .env("RABBITMQ_LOG_BASE", at("logs"))
            .env("RABBITMQ_DIST_PORT", node_port.to_string())
            // The broker has one thread, which sleeps when there is nothing to do: other tests run beside it.
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}")
            .env("ERL_EPMD_PORT", mapper_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1");
        let (stdout, stderr) = (log.try_clone().unwrap(), log);
        // A group of its own: the script begins others.
        let server = command.process_group(0).stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap();
        self.server = Some(server);
        eventually("a broker", || async {
            Connection::connect(&self.url(), ConnectionProperties::default()).await.ok()
        })
        .await;
    }

    /// Stops the broker by a signal, and waits for its end.
    pub(crate) async fn ends(&mut self, signal: Signal) {
        let mut server = self.server.take().unwrap();
        let group = Pid::from_raw(server.id() as i32);
        killpg(group, signal).unwrap();
        eventually("the broker's end", || {
            let is_over = server.try_wait().unwrap().is_some() && killpg(group, None).is_err();
            async move { is_over.then_some(()) }
        })
        .await;
    }

    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    pub(crate) async fn client(&self) -> Client {
        let connection = Connection::connect(&self.url(), ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        Client { _connection: connection, channel }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = killpg(Pid::from_raw(server.id() as i32), Signal::SIGKILL);
            let _ = server.wait();
        }
        let _ = self.mapper.kill();
        let _ = self.mapper.wait();
    }
}

pub(crate) struct Client {
    _connection: Connection,
    channel: Channel,
}

#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) routing_key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let value = self.properties.headers().as_ref()?.inner().get(name)?.clone();
        let AMQPValue::LongString(text) = value else { panic!("{value:?}") };
        Some(String::from_utf8(text.as_bytes().to_vec()).unwrap())
    }
}

impl Client {
    pub(crate) async fn exchange(&self, name: &str) {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        self.channel.exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default()).await.unwrap();
    }

    pub(crate) async fn queue(&self, name: &str, exchange: &str, routing_key: &str, arguments: FieldTable) {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(name.into(), options, arguments).await.unwrap();
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        self.channel.queue_bind(name.into(), exchange.into(), routing_key.into(), options, none).await.unwrap();
    }

    /// Consumes this number of messages of a queue.
    pub(crate) async fn takes(&self, queue: &str, number: usize) -> Vec<Message> {
        let mut messages = Vec::new();
        while messages.len() < number {
            messages.push(eventually("a message", || self.takes_one(queue)).await);
        }
        messages
    }

    pub(crate) async fn takes_one(&self, queue: &str) -> Option<Message> {
        let got = self.channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap()?;
        let properties = got.delivery.properties.clone();
        Some(Message {
            id: properties.message_id().as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
            routing_key: got.delivery.routing_key.as_str().to_owned(),
            properties,
            body: got.delivery.data.clone(),
        })
    }

    /// Returns the number of ready messages in a queue, once no message is unacknowledged.
    pub(crate) async fn waiting(&self, queue: &str) -> u32 {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        self.channel.queue_declare(queue.into(), options, FieldTable::default()).await.unwrap().message_count()
    }
}
