//! The torture runs three replicas of the real binary on its own Postgres. Users write and request exports all the
//! time, and a nemesis kills, stops and cuts off whatever runs. Afterwards an oracle that shares no code with the
//! service reports the losses.
//!
//! `cargo run --release --example torture -- --seed 1 --secs 180`; docs/RELIABILITY.md lists the checks. `--controls`
//! runs it against services that lack one protection each, and succeeds if it detects every one.

mod auditor;
mod backfill;
mod bucket;
mod builds;
mod bystander;
mod clients;
mod clock;
mod cluster;
mod controls;
mod ddl;
mod era;
mod file_order;
mod lanes;
mod ledger;
mod loader;
mod log_bound;
mod manifests;
mod mirror;
mod nemesis;
mod oracle;
mod patience;
mod place;
mod plan;
mod proxy;
mod publisher;
mod random;
mod receiver;
mod recorder;
mod replay;
mod replica;
mod report;
mod shapes;
mod trial;
mod upheavals;
mod writers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use tempfile::TempDir;

use crate::bucket::Bucket;
use crate::builds::Profile;
use crate::clock::Clock;
use crate::plan::{Move, Plan};
use crate::report::Report;
use crate::trial::Trial;

/// Harms the service in every way it knows, and reports the losses.
#[derive(Parser)]
struct Arguments {
    /// Seed of all random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Length of the second phase in seconds.
    #[arg(long, default_value_t = 180)]
    secs: u64,
    /// Run against each control, a service that lacks one protection, or only against this one.
    #[arg(long, num_args = 0..=1)]
    controls: Option<Option<String>>,
    /// Check only the order of one export's file operations, with strace.
    #[arg(long)]
    file_order: bool,
    /// Test only a copy that `apply` keeps in another Postgres while all processes are killed, for `--secs`.
    #[arg(long)]
    apply: bool,
    /// Write the files to this address, in the form of OUTPUT_URL, from two replicas without a common folder. Needs the
    /// emulators that `tests/buckets.sh --torture` starts.
    #[arg(long, overrides_with = "store")]
    store: Option<String>,
    /// Moves beside kills and cuts: by default all, with an empty list none.
    #[arg(long, value_enum, value_delimiter = ',', num_args = 0..)]
    moves: Option<Vec<Move>>,
    /// Use the debug build instead of the release build, which takes longer to compile.
    #[arg(long)]
    debug: bool,
    /// Keep the run's folder.
    #[arg(long)]
    keep: bool,
}

#[expect(clippy::disallowed_methods, reason = "the service's configuration is not for its torturer")]
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let store = arguments.store.as_deref().map(Bucket::at).transpose()?;
    let all = async {
        match &arguments.controls {
            _ if arguments.file_order => file_order().await,
            _ if arguments.apply => apply(&arguments).await,
            Some(name) => controls::run(arguments.seed, name.as_deref(), store).await,
            None => torture(&arguments, store).await,
        }
    };
    // After an interrupt, the processes must end too: dropping them here kills them. `timeout` sends a SIGTERM.
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let fine = tokio::select! {
        done = all => done?,
        _ = tokio::signal::ctrl_c() => false,
        _ = terminated.recv() => false,
    };
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks the order of the service's file operations. Returns false if a rule is broken.
async fn file_order() -> Result<bool> {
    let binary = builds::build(builds::tree(), Profile::Debug, None).await?;
    let broken = file_order::check(&binary, reachable_folder()?.path()).await?;
    println!("file order: {}", if broken.is_empty() { "as it must be".to_owned() } else { broken.join("\n  ") });
    Ok(broken.is_empty())
}

/// Tests a copy that `apply` keeps. Returns false if the copy was wrong, or if too little was tried.
async fn apply(arguments: &Arguments) -> Result<bool> {
    let Arguments { seed, secs, debug, .. } = *arguments;
    let folder = reachable_folder()?;
    let binary = build(if debug { Profile::Debug } else { Profile::Release }, folder.path()).await?;
    let fine = mirror::run(binary, folder.path(), seed, Duration::from_secs(secs)).await?;
    if !fine {
        println!("logs and files: {}", folder.keep().display());
    }
    println!(
        "seed {seed}: {}",
        if fine { "the copy was right at each moment, and the run is valid" } else { "NOT PASSED" }
    );
    Ok(fine)
}

async fn torture(arguments: &Arguments, store: Option<Bucket>) -> Result<bool> {
    let Arguments { seed, secs, keep, debug, .. } = *arguments;
    controls::require_applicable(builds::tree())?;
    let mut moves = arguments.moves.clone().unwrap_or_else(|| Move::value_variants().to_vec());
    println!("seed {seed}, {secs} s, {moves:?}");
    let length = Duration::from_secs(secs);
    let folder = reachable_folder()?;
    let clock = if moves.contains(&Move::Clock) { Clock::find(folder.path())? } else { None };
    if moves.contains(&Move::Clock) && clock.is_none() {
        ensure!(
            arguments.moves.is_none(),
            "to set the clock, install `faketime`, or say where libfaketime.so.1 is in FAKETIME_LIB"
        );
        println!("there is no libfaketime: nobody sets the database's clock");
        moves.retain(|what| *what != Move::Clock);
    }
    let struck = if debug { Profile::Debug } else { Profile::Release };
    let replicas = place::replicas(store.as_ref());
    let mut plan = Plan::new(seed, replicas, length, &moves);
    if store.is_some() {
        plan = plan.with_store_blows(seed, replicas, length);
    }
    let unused = Path::new(if store.is_some() {
        "crates/cdc-destination/src/folder"
    } else {
        "crates/cdc-destination/src/bucket"
    });
    let schedule = plan.text();
    let trial = Trial {
        seed,
        failpoints: builds::failpoints(builds::tree(), unused)?.into_iter().collect(),
        debug: build(Profile::Debug, folder.path()).await?,
        struck: build(struck, folder.path()).await?,
        plan,
        ends_with: None,
        store,
        clock,
        moves: moves.clone(),
    };
    let begun = Instant::now();
    let (report, counts) = match trial.run(folder.path()).await {
        Ok(ran) => ran,
        Err(error) => {
            println!(
                "seed {seed}: it broke off; the schedule:\n{schedule}\nlogs and files: {}",
                folder.keep().display()
            );
            return Err(error);
        }
    };
    println!("{}; {:.0} s in all", counts.text(), begun.elapsed().as_secs_f64());
    let invalid = counts.invalid(secs, replicas, &moves);
    for why in &invalid {
        println!("not valid: {why}");
    }
    if report.is_red() {
        println!("the schedule, in seconds from the second phase's begin:\n{schedule}");
        // Printed last, so that a truncated log still has it.
        print_violations(&report, 5);
    }
    let fine = invalid.is_empty() && !report.is_red();
    if keep || report.is_red() {
        println!("logs and files: {}", folder.keep().display());
    }
    println!("seed {seed}: {}", if fine { "0 violations, and the run is valid" } else { "NOT PASSED" });
    Ok(fine)
}

/// Builds the binary and copies it to `folder`, where no other build replaces it.
async fn build(profile: Profile, folder: &Path) -> Result<PathBuf> {
    let built = builds::build(builds::tree(), profile, None).await?;
    let kept = folder.join(format!("cdc-export-{profile:?}").to_lowercase());
    std::fs::copy(&built, &kept).with_context(|| format!("can't keep {}", built.display()))?;
    Ok(kept)
}

/// Makes a folder that the user who runs Postgres can reach.
fn reachable_folder() -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("torture-").tempdir()?;
    open_to_others(folder.path())?;
    Ok(folder)
}

fn open_to_others(folder: &Path) -> Result<()> {
    Ok(std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?)
}

/// Prints the first few violations of each invariant. Later ones mostly repeat them.
fn print_violations(report: &Report, most: usize) {
    for (invariant, found) in report.violations() {
        println!("RED {invariant}: {} times", found.len());
        for line in found.iter().take(most) {
            println!("  {}", line.chars().take(900).collect::<String>());
        }
    }
}
