//! Metrics in Prometheus's text format: counters of this process, and gauges read by `service`.
//!
//! A label value is a name chosen by the operator, a constant of this program or a consumer's id. It is never a value
//! of a row.

use std::collections::BTreeMap;
use std::sync::{LazyLock, OnceLock};

use pg_session::pool::PoolUse;
use prometheus::core::Collector;
use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};

pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// A metric. `docs/METRICS.md` describes each of them.
#[derive(Debug)]
pub struct Metric {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
}

const fn metric(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, help, labels }
}

/// A counter of this process, which is registered at its first use.
struct Counter {
    metric: Metric,
    registered: OnceLock<IntCounterVec>,
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Counter {
    Counter { metric: metric(name, labels, help), registered: OnceLock::new() }
}

impl Counter {
    /// Returns the series of these labels, which begins at 0.
    fn of(&self, labels: &[&str]) -> IntCounter {
        let Metric { name, help, labels: names } = &self.metric;
        let make = || registered(&REGISTRY, IntCounterVec::new(Opts::new(*name, *help), names));
        self.registered.get_or_init(make).with_label_values(labels)
    }
}

static JOBS: Counter =
    counter("cdc_export_jobs_total", &["dataset", "export_type", "status"], "Exports that ended, by final status.");
static FAILURES: Counter =
    counter("cdc_export_failures_total", &["dataset", "code"], "Exports that failed, by error code.");
static ROWS: Counter =
    counter("cdc_export_rows_total", &["dataset", "export_type"], "Rows in files of completed exports.");
static BYTES: Counter = counter(
    "cdc_export_bytes_total",
    &["dataset", "export_type"],
    "Bytes of files of completed exports, after compression.",
);
static LATE_ROWS: Counter = counter(
    "cdc_export_late_rows_total",
    &["dataset", "export_type"],
    "Exported rows that a comparison of updated_at with the watermark would have missed.",
);
static DURATION: LazyLock<HistogramVec> = LazyLock::new(|| {
    let options = HistogramOpts::new(
        "cdc_export_duration_seconds",
        "Time from the first attempt to the commit of completed exports.",
    );
    let options = options.buckets(DURATION_BUCKETS.to_vec());
    registered(&REGISTRY, HistogramVec::new(options, &["export_type"]))
});
static TAKEOVERS: Counter =
    counter("cdc_export_lease_takeovers_total", &[], "Jobs taken over from workers that did not renew their lease.");
static GAVE_WAY: Counter = counter(
    "cdc_export_exports_gave_way_total",
    &[],
    "Attempts that ended because another session waited for a lock on their table.",
);
static MAINTENANCE_FAILURES: Counter = counter(
    "cdc_export_maintenance_failures_total",
    &["task"],
    "Rounds of a maintenance task in this process that failed or exceeded their time limit.",
);
static DELIVERIES: Counter = counter(
    "cdc_export_deliveries_total",
    &["endpoint", "outcome"],
    "Attempts of this process to deliver an event to a receiver: delivered, failed (retried later) or dead.",
);
static SCHEDULE_SLOTS: Counter = counter(
    "cdc_export_schedule_slots_total",
    &["schedule", "outcome"],
    "Slots of schedules by outcome: run, skipped because an export of the lane was open, or refused for now.",
);
const CHANGE_LOG_MAX_BYTES: Metric =
    metric("cdc_export_change_log_max_bytes", &[], "The setting CHANGE_LOG_MAX_BYTES of this process.");
const CHANGE_LOG_MAX_AGE: Metric =
    metric("cdc_export_change_log_max_age_seconds", &[], "The setting CHANGE_LOG_MAX_AGE of this process.");
const BUILD_INFO: Metric = metric("cdc_export_build_info", &["version"], "Always 1; the label is the running version.");

pub const DATABASE_UP: Metric = metric("cdc_export_database_up", &[], "1 if Postgres responds, else 0.");
pub const OUTPUT_READY: Metric = metric(
    "cdc_export_output_ready",
    &[],
    "1 if the output folder or bucket exists, is writable and has room for an export, else 0.",
);
pub const POOL_CONNECTIONS: Metric = metric(
    "cdc_export_pool_connections",
    &["pool", "state"],
    "Connections of this process: idle, used, and the maximum (max).",
);
pub const WORKERS_READY: Metric =
    metric("cdc_export_workers_ready", &[], "0 if all claims of this process have failed for a minute, else 1.");
pub const QUEUE_JOBS: Metric = metric("cdc_export_queue_jobs", &["status"], "Jobs that have not ended.");
pub const QUEUE_OLDEST: Metric = metric(
    "cdc_export_queue_oldest_seconds",
    &[],
    "Time since the oldest pending job was submitted; 0 if none is pending.",
);
pub const UNPUBLISHED_JOBS: Metric = metric(
    "cdc_export_unpublished_jobs",
    &[],
    "Committed jobs whose files are not published yet. Until then, their consumers and datasets have no other exports.",
);
pub const UNPUBLISHED: Metric = metric(
    "cdc_export_unpublished_seconds",
    &[],
    "Time since the commit of the oldest job whose file is not published; 0 if there is none.",
);
pub const BEHIND: Metric = metric(
    "cdc_export_behind_seconds",
    &["consumer", "dataset"],
    "Age of the oldest committed change in the change log that no export of the consumer has; 0 if there is none.",
);
pub const FRESH_WITHIN: Metric = metric(
    "cdc_export_fresh_within_seconds",
    &["consumer", "dataset"],
    "Value of cdc_export_behind_seconds up to which the consumer is fresh: fresh_within of the dataset file, or a day.",
);
pub const WATERMARK_AGE: Metric = metric(
    "cdc_export_watermark_age_seconds",
    &["consumer", "dataset"],
    "Age of the watermark in datasets captured by timestamps, of the consumers that are furthest behind.",
);
pub const WATERMARKS_LEFT_OUT: Metric = metric(
    "cdc_export_watermarks_left_out",
    &[],
    "Watermarks without a series of cdc_export_watermark_age_seconds, because there are too many.",
);
pub const UNACKNOWLEDGED_EXPORTS: Metric = metric(
    "cdc_export_unacknowledged_exports",
    &["consumer", "dataset"],
    "Published exports that a consumer has not acknowledged, counted up to 1,000; only for consumers that acknowledge.",
);
pub const UNACKNOWLEDGED: Metric = metric(
    "cdc_export_unacknowledged_seconds",
    &["consumer", "dataset"],
    "Time since the oldest unacknowledged export of the consumer was published; 0 if there is none.",
);
pub const DELIVERIES_OPEN: Metric = metric(
    "cdc_export_deliveries_undelivered",
    &["endpoint", "status"],
    "Events that a receiver has not accepted: pending ones are retried, dead ones are not.",
);
pub const DELIVERIES_OLDEST: Metric = metric(
    "cdc_export_deliveries_oldest_seconds",
    &["endpoint"],
    "Age of the oldest event that a receiver has not accepted and that is retried; 0 if there is none.",
);
pub const POSITIONS_GIVEN_UP: Metric = metric(
    "cdc_export_positions_given_up",
    &[],
    "Consumers' positions whose changes were purged from the change log: they need a full export.",
);
pub const SCHEDULE_OVERDUE: Metric = metric(
    "cdc_export_schedule_overdue_seconds",
    &["schedule"],
    "Time since the oldest due slot without an export; 0 if there is none.",
);
pub const SCHEDULE_LAST_RUN: Metric = metric(
    "cdc_export_schedule_last_run_seconds",
    &["schedule"],
    "Time since the schedule last requested an export; no series before its first.",
);
pub const CHANGE_LOG_ROWS: Metric =
    metric("cdc_export_change_log_rows", &[], "Rows of the change log, as estimated by Postgres.");
pub const CHANGE_LOG_BYTES: Metric = metric(
    "cdc_export_change_log_bytes",
    &[],
    "Bytes of the change log on the database's disk, including its indexes.",
);
pub const CHANGE_LOG_HELD_BYTES: Metric = metric(
    "cdc_export_change_log_held_bytes",
    &[],
    "Estimated bytes of rows that positions hold; above cdc_export_change_log_max_bytes positions are given up.",
);
pub const CHANGE_LOG_HELD: Metric = metric(
    "cdc_export_change_log_held_seconds",
    &[],
    "Time since the oldest position was saved; at cdc_export_change_log_max_age_seconds it is given up.",
);

/// Buckets of export durations. An export of a few rows takes milliseconds; a full export of a large table takes an
/// hour.
const DURATION_BUCKETS: &[f64] =
    &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0];

#[derive(Clone, Copy, Debug)]
pub struct ExportLabels<'a> {
    pub dataset: &'a str,
    pub export_type: &'a str,
}

#[derive(Clone, Copy, Debug)]
pub struct Completed {
    pub rows: u64,
    pub bytes: u64,
    /// The number of rows that a comparison of `updated_at` with the watermark would have missed.
    pub late_rows: u64,
    /// The time in seconds from its first start to its commit.
    pub seconds: f64,
}

/// The counters of this process. Each one is registered at its first use.
static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    let registry = Registry::new();
    gauge(&registry, &BUILD_INFO).with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
    registry
});

const VALID: &str = "the metrics are constants with distinct names";

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: prometheus::Result<C>) -> C {
    let collector = collector.expect(VALID);
    registry.register(Box::new(collector.clone())).expect(VALID);
    collector
}

fn gauge(registry: &Registry, metric: &Metric) -> GaugeVec {
    registered(registry, GaugeVec::new(Opts::new(metric.name, metric.help), metric.labels))
}

fn text(registry: &Registry) -> String {
    TextEncoder::new().encode_to_string(&registry.gather()).expect("each metric family has a name and a type")
}

pub fn init_schedule(schedule: &str) {
    for outcome in ["run", "skipped", "refused"] {
        SCHEDULE_SLOTS.of(&[schedule, outcome]);
    }
}

/// Counts a slot of a schedule by outcome: `run`, `skipped` or `refused`.
pub fn schedule_slot(schedule: &str, outcome: &str) {
    SCHEDULE_SLOTS.of(&[schedule, outcome]).inc();
}

/// Counts a job that ended with `status`.
///
/// The series of a dataset and type begin with its first job, because a thousand datasets have tens of thousands of
/// them. The first end is counted as one, and the other end that alerts look at begins at 0.
pub fn export_ended(ExportLabels { dataset, export_type }: ExportLabels<'_>, status: &str) {
    for end in ["completed", "failed"] {
        JOBS.of(&[dataset, export_type, end]);
    }
    JOBS.of(&[dataset, export_type, status]).inc();
}

/// Counts a failed export by its code. [`export_ended`] counts its end.
pub fn export_failed(labels: ExportLabels<'_>, code: &str) {
    FAILURES.of(&[labels.dataset, code]).inc();
}

/// Adds the rows, bytes and duration of a completed export. [`export_ended`] counts its end.
pub fn export_completed(labels: ExportLabels<'_>, completed: Completed) {
    let labels = &[labels.dataset, labels.export_type];
    ROWS.of(labels).inc_by(completed.rows);
    BYTES.of(labels).inc_by(completed.bytes);
    if completed.late_rows > 0 {
        LATE_ROWS.of(labels).inc_by(completed.late_rows);
    }
    DURATION.with_label_values(&labels[1..]).observe(completed.seconds);
}

pub fn lease_taken_over() {
    TAKEOVERS.of(&[]).inc();
}

pub fn gave_way() {
    GAVE_WAY.of(&[]).inc();
}

/// Initializes the series of a maintenance task to 0. Without that, Prometheus would not see the first failure as an
/// increase.
pub fn init_maintenance(task: &str) {
    MAINTENANCE_FAILURES.of(&[task]);
}

pub fn maintenance_failed(task: &str) {
    MAINTENANCE_FAILURES.of(&[task]).inc();
}

/// Initializes the series of a receiver to 0, as [`init_maintenance`] does.
pub fn init_deliveries(endpoint: &str) {
    for outcome in ["delivered", "failed", "dead"] {
        DELIVERIES.of(&[endpoint, outcome]);
    }
}

pub fn delivery_tried(endpoint: &str, outcome: &str) {
    DELIVERIES.of(&[endpoint, outcome]).inc();
}

/// Sets the maximum part of the change log that a position may hold in this process.
pub fn change_log_caps(bytes: u64, age: std::time::Duration) {
    static CAPS: LazyLock<[GaugeVec; 2]> =
        LazyLock::new(|| [CHANGE_LOG_MAX_BYTES, CHANGE_LOG_MAX_AGE].map(|metric| gauge(&REGISTRY, &metric)));
    for (gauge, value) in CAPS.iter().zip([bytes as f64, age.as_secs_f64()]) {
        gauge.with_label_values::<&str>(&[]).set(value);
    }
}

pub fn counted() -> String {
    // Initializes these series to 0 as well.
    TAKEOVERS.of(&[]);
    GAVE_WAY.of(&[]);
    text(&REGISTRY)
}

/// The gauges of one scrape. Each scrape has its own registry, so that a removed consumer leaves no series behind.
#[derive(Debug, Default)]
pub struct Gauges {
    registry: Registry,
    by_name: BTreeMap<&'static str, GaugeVec>,
}

impl Gauges {
    pub fn set(&mut self, metric: &Metric, labels: &[&str], value: f64) {
        let gauges = self.by_name.entry(metric.name).or_insert_with(|| gauge(&self.registry, metric));
        gauges.with_label_values(labels).set(value);
    }

    pub fn set_pool(&mut self, pool: &str, PoolUse { open, idle, most }: PoolUse) {
        for (state, connections) in [("idle", idle), ("used", open.saturating_sub(idle)), ("max", most)] {
            self.set(&POOL_CONNECTIONS, &[pool, state], f64::from(connections));
        }
    }

    pub fn text(&self) -> String {
        text(&self.registry)
    }
}
