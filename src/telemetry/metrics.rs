//! Metrics in Prometheus's text format: what this process counts, and gauges that `service` has just read.
//!
//! A label's value is a name that the operator chose, a word of this program or a consumer's id; never a row's value.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use prometheus::core::Collector;
use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder};

/// The media type of the metrics' text.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// A metric. `docs/METRICS.md` has a row for each.
#[derive(Debug)]
pub struct Metric {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
}

const fn metric(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, help, labels }
}

static JOBS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counter(metric(
        "cdc_export_jobs_total",
        &["dataset", "export_type", "status"],
        "Jobs that ended, by how they ended.",
    ))
});
static FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counter(metric("cdc_export_failures_total", &["dataset", "code"], "Jobs that failed, by the code of their error."))
});
static ROWS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counter(metric("cdc_export_rows_total", &["dataset", "export_type"], "Rows in files of completed exports."))
});
static BYTES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counter(metric(
        "cdc_export_bytes_total",
        &["dataset", "export_type"],
        "Bytes of files of completed exports, as compressed.",
    ))
});
static LATE_ROWS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counter(metric(
        "cdc_export_late_rows_total",
        &["dataset", "export_type"],
        "Exported rows that a comparison of updated_at with the watermark would have missed.",
    ))
});
static DURATION: LazyLock<HistogramVec> = LazyLock::new(|| {
    let Metric { name, help, labels } = metric(
        "cdc_export_duration_seconds",
        &["dataset", "export_type"],
        "From the first attempt's start to the commit, of completed exports.",
    );
    let options = HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec());
    registered(&REGISTRY, HistogramVec::new(options, labels))
});
static TAKEOVERS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counter(metric("cdc_export_lease_takeovers_total", &[], "Jobs taken from workers that gave no sign for a lease."))
});
static MAINTENANCE_FAILURES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counter(metric(
        "cdc_export_maintenance_failures_total",
        &["task"],
        "Rounds of a maintenance task that failed in this process, or took too long.",
    ))
});
static DELIVERIES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counter(metric(
        "cdc_export_deliveries_total",
        &["endpoint", "outcome"],
        "Tries to tell a receiver of an event by this process: delivered, failed and tried again later, or dead.",
    ))
});
static AMQP_REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counter(metric(
        "cdc_export_amqp_requests_total",
        &["endpoint", "outcome"],
        "Requests from a broker's queue that this process took: accepted, refused and laid aside, or deferred, which is counted at each try.",
    ))
});
static AMQP_WAITING: LazyLock<GaugeVec> = LazyLock::new(|| {
    gauge(
        &REGISTRY,
        &metric(
            "cdc_export_amqp_requests_waiting",
            &["endpoint"],
            "Requests from a broker's queue that this process has, and that wait to be tried again or to be laid aside.",
        ),
    )
});
static SCHEDULE_SLOTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    counter(metric(
        "cdc_export_schedule_slots_total",
        &["schedule", "outcome"],
        "Slots of schedules whose exports were asked for (run), skipped because an export of the lane was open, or refused for now; and full exports that healed.",
    ))
});
/// What becomes of slots.
const SLOT_OUTCOMES: [&str; 4] = ["run", "skipped", "refused", "healed"];
static CHANGE_LOG_MAX_ROWS: LazyLock<GaugeVec> = LazyLock::new(|| {
    gauge(&REGISTRY, &metric("cdc_export_change_log_max_rows", &[], "The setting CHANGE_LOG_MAX_ROWS of this process."))
});
static CHANGE_LOG_MAX_AGE: LazyLock<GaugeVec> = LazyLock::new(|| {
    gauge(
        &REGISTRY,
        &metric("cdc_export_change_log_max_age_seconds", &[], "The setting CHANGE_LOG_MAX_AGE of this process."),
    )
});
const BUILD_INFO: Metric = metric("cdc_export_build_info", &["version"], "1, with the version that runs as its label.");

/// True if Postgres answers.
pub const DATABASE_UP: Metric = metric("cdc_export_database_up", &[], "1 if Postgres answers, else 0.");
/// True if an export could be written.
pub const OUTPUT_READY: Metric = metric(
    "cdc_export_output_ready",
    &[],
    "1 if the output folder or bucket is there, can be written and has room for an export, else 0.",
);
/// Connections of a pool.
pub const POOL_CONNECTIONS: Metric = metric(
    "cdc_export_pool_connections",
    &["pool", "state"],
    "Connections of this process: idle, used, and the most there may be (max).",
);
/// Open jobs.
pub const QUEUE_JOBS: Metric = metric("cdc_export_queue_jobs", &["status"], "Jobs that have not ended.");
/// How long the oldest pending job has been there.
pub const QUEUE_OLDEST: Metric = metric(
    "cdc_export_queue_oldest_seconds",
    &[],
    "Since the oldest pending job was submitted; 0 where none is pending.",
);
/// Jobs whose lanes wait for their files' names.
pub const UNPUBLISHED_JOBS: Metric = metric(
    "cdc_export_unpublished_jobs",
    &[],
    "Jobs that are committed and whose files have no names yet: nothing else of their consumers and datasets is exported meanwhile.",
);
/// How long the oldest of these waits.
pub const UNPUBLISHED: Metric = metric(
    "cdc_export_unpublished_seconds",
    &[],
    "Since the commit of the oldest job whose file has no name yet; 0 where there is none.",
);
/// How far behind consumers are.
pub const WATERMARK_AGE: Metric = metric(
    "cdc_export_watermark_age_seconds",
    &["consumer", "dataset"],
    "Since the time that the watermark names, of the consumers furthest behind.",
);
/// Consumers without a series of [`WATERMARK_AGE`].
pub const WATERMARKS_LEFT_OUT: Metric = metric(
    "cdc_export_watermarks_left_out",
    &[],
    "Watermarks that have no series of cdc_export_watermark_age_seconds, since there are too many.",
);
/// How much consumers that acknowledge have not acknowledged.
pub const UNACKNOWLEDGED_EXPORTS: Metric = metric(
    "cdc_export_unacknowledged_exports",
    &["consumer", "dataset"],
    "Published exports that the consumer has not acknowledged, of consumers that acknowledge; up to 1,000 are counted.",
);
/// For how long.
pub const UNACKNOWLEDGED: Metric = metric(
    "cdc_export_unacknowledged_seconds",
    &["consumer", "dataset"],
    "Since the oldest export that the consumer has not acknowledged was published; 0 where there is none.",
);
/// Events that receivers have not taken.
pub const DELIVERIES_OPEN: Metric = metric(
    "cdc_export_deliveries_undelivered",
    &["endpoint", "status"],
    "Events that a receiver has not taken: pending ones are tried again, dead ones are not.",
);
/// For how long.
pub const DELIVERIES_OLDEST: Metric = metric(
    "cdc_export_deliveries_oldest_seconds",
    &["endpoint"],
    "Since the oldest event was made that a receiver has not taken and is told again; 0 where there is none.",
);
/// Consumers that need a full export.
pub const POSITIONS_GIVEN_UP: Metric = metric(
    "cdc_export_positions_given_up",
    &[],
    "Consumers' positions that the change log was purged past: a full export heals them.",
);
/// How late schedules are.
pub const SCHEDULE_OVERDUE: Metric = metric(
    "cdc_export_schedule_overdue_seconds",
    &["schedule"],
    "Since the oldest slot that is due and has no export yet; 0 where none is.",
);
/// When schedules last ran.
pub const SCHEDULE_LAST_RUN: Metric = metric(
    "cdc_export_schedule_last_run_seconds",
    &["schedule"],
    "Since the schedule last asked for an export; no series before its first.",
);
/// Rows of the change log.
pub const CHANGE_LOG_ROWS: Metric =
    metric("cdc_export_change_log_rows", &[], "Rows of the change log, as Postgres estimates them.");
/// The size of the change log, in bytes.
pub const CHANGE_LOG_BYTES: Metric =
    metric("cdc_export_change_log_bytes", &[], "Bytes of the change log on the database's disk, with its indexes.");
/// How near the oldest position is to being given up, in rows.
pub const CHANGE_LOG_HELD_ROWS: Metric = metric(
    "cdc_export_change_log_held_rows",
    &[],
    "Rows logged since the position that is furthest behind; at cdc_export_change_log_max_rows it is given up.",
);
/// How near the oldest position is to being given up, in seconds.
pub const CHANGE_LOG_HELD: Metric = metric(
    "cdc_export_change_log_held_seconds",
    &[],
    "Since the oldest position was saved; at cdc_export_change_log_max_age_seconds it is given up.",
);

/// A change of a few rows takes milliseconds, a full export of a large table an hour.
const DURATION_BUCKETS: &[f64] =
    &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0, 14400.0];

/// The labels that a count of exports has.
#[derive(Clone, Copy, Debug)]
pub struct ExportLabels<'a> {
    /// The dataset's name.
    pub dataset: &'a str,
    /// The export type's word.
    pub export_type: &'a str,
}

/// What is counted of a completed export.
#[derive(Clone, Copy, Debug)]
pub struct Completed {
    /// Rows in its file.
    pub rows: u64,
    /// Bytes of its file.
    pub bytes: u64,
    /// Rows that a comparison of their times with the watermark would have missed.
    pub late_rows: u64,
    /// Seconds from its first start to its commit.
    pub seconds: f64,
}

/// How a pool's connections are used.
#[derive(Clone, Copy, Debug)]
pub struct PoolUse {
    /// Open connections.
    pub open: u32,
    /// Open connections that are not in use.
    pub idle: u32,
    /// The most connections that may be open.
    pub most: u32,
}

/// The counters of this process. Each is registered when it is first used.
static REGISTRY: LazyLock<Registry> = LazyLock::new(|| {
    let registry = Registry::new();
    gauge(&registry, &BUILD_INFO).with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
    registry
});

const VALID: &str = "the metrics are constants, each with a name of its own";

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: prometheus::Result<C>) -> C {
    let collector = collector.expect(VALID);
    registry.register(Box::new(collector.clone())).expect(VALID);
    collector
}

fn counter(metric: Metric) -> IntCounterVec {
    registered(&REGISTRY, IntCounterVec::new(Opts::new(metric.name, metric.help), metric.labels))
}

fn gauge(registry: &Registry, metric: &Metric) -> GaugeVec {
    registered(registry, GaugeVec::new(Opts::new(metric.name, metric.help), metric.labels))
}

fn text(registry: &Registry) -> String {
    TextEncoder::new().encode_to_string(&registry.gather()).expect("every family of a registry has a name and a type")
}

/// Makes the series of these labels begin at 0, for each of these ends and failure codes. Otherwise the first event of
/// a series would be no increase to Prometheus, and would raise no alert.
pub fn init_series<'a>(
    labels: ExportLabels<'_>,
    ends: impl Iterator<Item = &'a str>,
    codes: impl Iterator<Item = &'a str>,
) {
    let ExportLabels { dataset, export_type } = labels;
    ends.for_each(|end| drop(JOBS.with_label_values(&[dataset, export_type, end])));
    codes.for_each(|code| drop(FAILURES.with_label_values(&[dataset, code])));
    for counter in [&ROWS, &BYTES, &LATE_ROWS] {
        counter.with_label_values(&[dataset, export_type]);
    }
    DURATION.with_label_values(&[dataset, export_type]);
}

/// Makes the series of a schedule begin at 0.
pub fn init_schedule(schedule: &str) {
    SLOT_OUTCOMES.iter().for_each(|outcome| drop(SCHEDULE_SLOTS.with_label_values(&[schedule, outcome])));
}

/// Counts a slot of a schedule by what became of it: `run`, `skipped` or `refused`; and a full export that `healed`.
pub fn schedule_slot(schedule: &str, outcome: &str) {
    SCHEDULE_SLOTS.with_label_values(&[schedule, outcome]).inc();
}

/// Counts a job that ended as `status`.
pub fn job_ended(labels: ExportLabels<'_>, status: &str) {
    JOBS.with_label_values(&[labels.dataset, labels.export_type, status]).inc();
}

/// Counts a job's failure by its code. Its end is counted by [`job_ended`].
pub fn job_failed(labels: ExportLabels<'_>, code: &str) {
    FAILURES.with_label_values(&[labels.dataset, code]).inc();
}

/// Counts the rows, bytes and time of a completed job. Its end is counted by [`job_ended`].
pub fn job_completed(labels: ExportLabels<'_>, completed: Completed) {
    let labels = &[labels.dataset, labels.export_type];
    ROWS.with_label_values(labels).inc_by(completed.rows);
    BYTES.with_label_values(labels).inc_by(completed.bytes);
    LATE_ROWS.with_label_values(labels).inc_by(completed.late_rows);
    DURATION.with_label_values(labels).observe(completed.seconds);
}

/// Counts a job that was taken over from a worker whose lease had ended.
pub fn lease_taken_over() {
    TAKEOVERS.with_label_values::<&str>(&[]).inc();
}

/// Makes the series of a maintenance task begin at 0, as [`init_series`] does.
pub fn init_maintenance(task: &str) {
    MAINTENANCE_FAILURES.with_label_values(&[task]);
}

/// Counts a round of a maintenance task that failed.
pub fn maintenance_failed(task: &str) {
    MAINTENANCE_FAILURES.with_label_values(&[task]).inc();
}

/// Makes the series of a receiver begin at 0, as [`init_series`] does.
pub fn init_deliveries(endpoint: &str) {
    for outcome in ["delivered", "failed", "dead"] {
        DELIVERIES.with_label_values(&[endpoint, outcome]);
    }
}

/// Makes the series of a broker's requests begin at 0.
pub fn init_amqp_requests(endpoint: &str) {
    for outcome in ["accepted", "refused", "deferred"] {
        AMQP_REQUESTS.with_label_values(&[endpoint, outcome]);
    }
    amqp_requests_wait(endpoint, 0.0);
}

/// Adds to how many requests from a broker's queue wait.
pub fn amqp_requests_wait(endpoint: &str, more: f64) {
    AMQP_WAITING.with_label_values(&[endpoint]).add(more);
}

/// Counts a request from a broker's queue by what became of it.
pub fn amqp_request(endpoint: &str, outcome: &str) {
    AMQP_REQUESTS.with_label_values(&[endpoint, outcome]).inc();
}

/// Counts a try to tell a receiver by what became of it.
pub fn delivery_tried(endpoint: &str, outcome: &str) {
    DELIVERIES.with_label_values(&[endpoint, outcome]).inc();
}

/// Sets how much of the change log this process lets a position hold.
pub fn change_log_caps(rows: u64, age: std::time::Duration) {
    CHANGE_LOG_MAX_ROWS.with_label_values::<&str>(&[]).set(rows as f64);
    CHANGE_LOG_MAX_AGE.with_label_values::<&str>(&[]).set(age.as_secs_f64());
}

/// The counters' text.
pub fn counted() -> String {
    // It begins at 0, too.
    TAKEOVERS.with_label_values::<&str>(&[]);
    text(&REGISTRY)
}

/// The gauges of one answer. Each answer has gauges of its own, so that a consumer which is gone leaves no series.
#[derive(Debug, Default)]
pub struct Gauges {
    registry: Registry,
    by_name: BTreeMap<&'static str, GaugeVec>,
}

impl Gauges {
    /// Sets the gauge with these values of its labels.
    pub fn set(&mut self, metric: &Metric, labels: &[&str], value: f64) {
        let gauges = self.by_name.entry(metric.name).or_insert_with(|| gauge(&self.registry, metric));
        gauges.with_label_values(labels).set(value);
    }

    /// Sets the gauges of a pool's connections.
    pub fn set_pool(&mut self, pool: &str, PoolUse { open, idle, most }: PoolUse) {
        for (state, connections) in [("idle", idle), ("used", open.saturating_sub(idle)), ("max", most)] {
            self.set(&POOL_CONNECTIONS, &[pool, state], f64::from(connections));
        }
    }

    /// The text of all gauges that were set.
    pub fn text(&self) -> String {
        text(&self.registry)
    }
}
