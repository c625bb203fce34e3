//! Checks the order of one export's file operations, as the kernel saw them. `kill -9` keeps the page cache, so it
//! can't show a missing fsync; a power cut would. So strace records the operations in their order. After every prefix
//! of them the recorded files must be whole, whichever unsynced writes reached the disk.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::clients::client_builder;
use crate::cluster::Cluster;
use crate::patience::eventually;
use crate::replica;

const PATIENCE: Duration = Duration::from_secs(30);

const CALLS: &str = "openat,write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,linkat,sendto,sendmsg";

/// An operation that matters. The operations are in the order in which they took effect.
#[derive(Debug, PartialEq, Eq)]
enum Operation {
    Create,
    Write,
    SyncFile,
    SyncFolder,
    Commit,
    Name,
    Record,
}

pub(crate) async fn check(binary: &Path, folder: &Path) -> Result<Vec<String>> {
    let cluster = Cluster::start(folder, None).await?;
    let output = folder.join("output");
    let mut service = replica::command(binary, &cluster.service_url(cluster.port()))
        .env("OUTPUT_DIR", &output)
        .env("PORT", "0")
        .env("SEED_ROWS", "300000")
        .current_dir(folder)
        .spawn()?;
    let address = tokio::time::timeout(PATIENCE, address_of(&mut service)).await.context("it doesn't listen")??;
    let trace = folder.join("strace.txt");
    let pid = service.id().context("it runs")?;
    let mut strace = trace_of(pid, &trace)?;
    attached(pid, &mut strace).await?;
    export(&address).await?;
    // Makes strace detach from the service and end.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(strace.id().context("it runs")?.cast_signed()),
        nix::sys::signal::Signal::SIGINT,
    )?;
    strace.wait().await?;
    service.kill().await?;
    cluster.stop().await?;
    let operations = operations(&std::fs::read_to_string(&trace)?, &output);
    Ok(violations(&operations))
}

async fn address_of(service: &mut Child) -> Result<String> {
    let mut lines = BufReader::new(service.stderr.take().context("it is piped")?).lines();
    while let Some(line) = lines.next_line().await? {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(address) = event["address"].as_str() {
            // Reads the rest of the log, so that the service can write it. Nobody needs it.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(address.to_owned());
        }
    }
    bail!("the service ended before it listened")
}

fn trace_of(pid: u32, file: &Path) -> Result<Child> {
    // Prints paths for descriptors, and enough of each text to recognize a statement by its name.
    let arguments = ["-f", "-qq", "-y", "-s", "400", "-e", &format!("trace={CALLS}"), "-e", "signal=none", "-o"];
    let strace =
        Command::new("strace").args(arguments).arg(file).arg("-p").arg(pid.to_string()).kill_on_drop(true).spawn();
    strace.context("strace is needed (Debian: `apt-get install strace`)")
}

async fn attached(pid: u32, strace: &mut Child) -> Result<()> {
    let is_traced = async || {
        ensure!(strace.try_wait()?.is_none(), "strace can't attach: does the system allow it?");
        let mut all = true;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = std::fs::read_to_string(task?.path().join("status")).unwrap_or_default();
            all &= !status.contains("TracerPid:\t0\n");
        }
        Ok(all)
    };
    ensure!(eventually(PATIENCE, is_traced).await?, "strace doesn't attach");
    Ok(())
}

async fn export(address: &str) -> Result<()> {
    let http = client_builder().build()?;
    let post = http.post(format!("{address}/exports/full")).header("X-Consumer-ID", "order");
    let job: Value = post.send().await?.error_for_status()?.json().await?;
    let id = job["jobId"].as_str().context("a job has an id")?;
    let ended: Value = http.get(format!("{address}/exports/{id}?wait=60")).send().await?.json().await?;
    ensure!(ended["status"] == "completed", "the export did not complete: {ended}");
    Ok(())
}

/// Returns the output of strace as operations. If another thread interrupts a call, strace prints two parts. Changes of
/// the disk hold from the call's end on. Sent data may arrive from the call's beginning on.
fn operations(trace: &str, output: &Path) -> Vec<Operation> {
    let mut begun = std::collections::HashMap::new();
    let mut operations = Vec::new();
    for line in trace.lines() {
        let Some((pid, call)) = line.trim_start().split_once(' ') else { continue };
        let call = call.trim_start();
        if let Some(start) = call.strip_suffix(" <unfinished ...>") {
            if let found @ Some(Operation::Commit | Operation::Record | Operation::Name) = operation(start, output) {
                operations.extend(found);
            } else {
                begun.insert(pid, (start.to_owned(), operations.len()));
            }
        } else if call.starts_with("<... ") {
            let ended_well = !call.contains(" = -1 ");
            let Some((start, at)) = begun.remove(pid).filter(|_| ended_well) else { continue };
            let found = operation(&start, output);
            // A sync covers the writes before its beginning. It may miss later writes.
            let is_overtaken = found == Some(Operation::SyncFile) && operations[at..].contains(&Operation::Write);
            operations.extend(found.filter(|_| !is_overtaken));
        } else if !call.contains(" = -1 ") {
            operations.extend(operation(call, output));
        }
    }
    // Repeated operations count as one.
    operations.dedup();
    operations
}

fn operation(call: &str, output: &Path) -> Option<Operation> {
    let (name, arguments) = call.split_once('(')?;
    let folder = output.to_str()?;
    let on_hidden_file = arguments.split([',', ')']).next()?.ends_with(".part>");
    let on_folder = arguments.split([',', ')']).next()?.ends_with(&format!("<{folder}>"));
    match name {
        "openat" if arguments.contains(".part\"") && arguments.contains("O_CREAT") => Some(Operation::Create),
        "write" | "pwrite64" | "writev" if on_hidden_file => Some(Operation::Write),
        "fsync" | "fdatasync" if on_hidden_file => Some(Operation::SyncFile),
        "fsync" | "fdatasync" if on_folder => Some(Operation::SyncFolder),
        "rename" | "renameat" | "renameat2" | "linkat" if arguments.contains(".part\"") => Some(Operation::Name),
        "sendto" | "sendmsg" | "write" | "writev" if arguments.contains("source.snapshot.commit") => {
            Some(Operation::Commit)
        }
        "sendto" | "sendmsg" | "write" | "writev" if arguments.contains("store.files.published") => {
            Some(Operation::Record)
        }
        _ => None,
    }
}

/// Returns the rules that are broken: a power cut could show a recorded file that isn't whole, or has no name.
fn violations(operations: &[Operation]) -> Vec<String> {
    use Operation::{Commit, Create, Name, Record, SyncFile, SyncFolder, Write};
    let first = |wanted: &Operation| operations.iter().position(|operation| operation == wanted);
    let last = |wanted: &Operation| operations.iter().rposition(|operation| operation == wanted);
    let between = |from: Option<usize>, to: Option<usize>, wanted: &Operation| match (from, to) {
        (Some(from), Some(to)) if from < to => operations[from..to].contains(wanted),
        _ => false,
    };
    let ordered = |before: Option<usize>, after: Option<usize>| matches!((before, after), (Some(a), Some(b)) if a < b);
    let rules = [
        (
            "the export was written, committed, named and recorded",
            [Create, Write, Commit, Name, Record].iter().all(|o| first(o).is_some()),
        ),
        (
            "the file is synced after its last write and before the commit",
            between(last(&Write), first(&Commit), &SyncFile),
        ),
        ("the hidden name is synced before the commit", between(first(&Create), first(&Commit), &SyncFolder)),
        ("the file gets its name after the commit", ordered(last(&Commit), first(&Name))),
        ("the name is synced before it is recorded", between(first(&Name), first(&Record), &SyncFolder)),
    ];
    let broken: Vec<String> =
        rules.into_iter().filter(|(_, holds)| !holds).map(|(rule, _)| format!("not so: {rule}")).collect();
    if broken.is_empty() { broken } else { broken.into_iter().chain([format!("{operations:?}")]).collect() }
}
