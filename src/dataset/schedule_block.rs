//! Reads the `[[schedule]]` blocks of the operator's file.

use std::sync::Arc;

use chrono_tz::Tz;

use crate::dataset::block::{Block, Names, OperatorFile};
use crate::dataset::dataset_block::fresh_within;
use crate::dataset::listener::Known;
use crate::dataset::name::hint;
use crate::job::datasets::MOST_DATASETS;
use crate::job::{ConsumerId, ExportType};
use crate::schedule::timing::{self, BadTiming, Timing};
use crate::schedule::{Schedule, ScheduledDatasets};
use pg_rows::encoding::{Encoding, Format};

pub(super) fn read(file: &mut OperatorFile<'_>, names: &mut Names, known: &Known<'_>) -> Vec<Arc<Schedule>> {
    let mut schedules = Vec::new();
    file.each_block("schedule", names, |block| schedules.extend(schedule(block, known).map(Arc::new)));
    schedules
}

fn schedule(block: &mut Block<'_, '_>, known: &Known<'_>) -> Option<Schedule> {
    let consumer = block.required("consumer", str::parse::<ConsumerId>);
    let datasets = datasets(block, known);
    let export_type = block.required("type", str::parse::<ExportType>);
    let encoding = encoding(block);
    let timing = timing(block);
    let heals = block.flag("heal", false);
    if heals && export_type == Some(ExportType::Full) {
        block.wrong("heal", "a full export heals the others, and needs it never");
    }
    let runs_at_start = block.flag("run_at_start", true);
    let skip_empty = block.has("skip_empty").then(|| block.flag("skip_empty", false));
    let fresh_within = fresh_within(block);
    Some(Schedule {
        name: block.name.clone(),
        consumer: consumer?,
        datasets: datasets?,
        export_type: export_type?,
        encoding: encoding?,
        timing: timing?,
        heals,
        runs_at_start,
        skip_empty,
        fresh_within,
    })
}

/// Reads `dataset`, or `datasets`: a list, or `"*"` for all that are ready.
fn datasets(block: &mut Block<'_, '_>, known: &Known<'_>) -> Option<ScheduledDatasets> {
    if !block.has("datasets") {
        block.text("datasets");
        return block.required("dataset", |name| known.dataset(name)).map(ScheduledDatasets::One);
    }
    if block.text("dataset").is_some() {
        block.wrong("datasets", "dataset names one already");
    }
    if block.is_text("datasets") {
        let all = |word: &str| match word {
            "*" => Ok(ScheduledDatasets::All),
            other => Err(format!("`{other}` is neither a list of datasets nor `*`")),
        };
        return block.optional("datasets", all);
    }
    let mut names = block.list("datasets", |name| known.dataset(name))?;
    names.sort();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        block.wrong("datasets", format!("`{}` is there twice", twice[0]));
    }
    if names.len() > MOST_DATASETS {
        block.wrong("datasets", format!("a job has {MOST_DATASETS} datasets at most"));
    }
    Some(ScheduledDatasets::Listed(names))
}

fn encoding(block: &mut Block<'_, '_>) -> Option<Encoding> {
    let format = block.or_default("format", Format::Csv, str::parse);
    let compression = block.or_default("compression", None, |word| word.parse().map(Some));
    Encoding::new(format?, compression?).map_err(|why| block.wrong(why.member(), why)).ok()
}

/// Reads when a schedule runs: `every`, or `cron` with its `timezone`.
fn timing(block: &mut Block<'_, '_>) -> Option<Timing> {
    let (every, cron, zone) = (block.text("every"), block.text("cron"), block.text("timezone"));
    let contradiction = match (&every, &cron, &zone) {
        (None, None, _) => Some(("every", "either every or cron is expected")),
        (Some(_), Some(_), _) => Some(("cron", "every says already when it runs")),
        (Some(_), None, Some(_)) => Some(("timezone", "only with cron: every counts from 1970, UTC")),
        (Some(_), None, None) | (None, Some(_), _) => None,
    };
    if let Some((member, why)) = contradiction {
        block.wrong(member, why);
    }
    let every = every.map(|every| Timing::every(&every).map_err(|why| block.wrong("every", why)).ok());
    let zone = match zone {
        None => Some(Tz::UTC),
        Some(name) => {
            let wrong = |why: BadTiming| block.wrong("timezone", format!("{why}{}", hint(&name, timing::zones())));
            timing::zone(&name).map_err(wrong).ok()
        }
    };
    let cron = cron.map(|cron| {
        let timing = Timing::cron(&cron, zone.unwrap_or(Tz::UTC));
        timing.map_err(|why| block.wrong("cron", why)).ok()
    });
    if contradiction.is_some() || zone.is_none() {
        return None;
    }
    every.or(cron)?
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::dataset::assert_lines;
    use crate::dataset::catalog::Catalog;
    use crate::job::ExportType;
    use crate::schedule::ScheduledDatasets;
    use pg_rows::encoding::{Compression, Format};

    const ORDERS: &str = "[[dataset]]\nname = \"orders\"\ntable = \"orders\"\n";

    /// Returns the fault of a schedule whose block begins in line 4.
    fn wrong(block: &str) -> String {
        Catalog::from_toml(&format!("{ORDERS}[[schedule]]\n{block}")).unwrap_err().to_string()
    }

    #[test]
    fn everything_may_be_said() {
        let catalog = Catalog::from_toml(&format!(
            "{ORDERS}
            [[schedule]]
            name = \"often\"
            consumer = \"search\"
            dataset = \"orders\"
            type = \"delta\"
            every = \"5m\"
            format = \"ndjson\"
            compression = \"zstd\"
            heal = true
            run_at_start = false
            skip_empty = true
            fresh_within = \"15m\"

            [[schedule]]
            name = \"nightly\"
            consumer = \"BI:team@x\"
            dataset = \"orders\"
            type = \"full\"
            cron = \"15 2 * * 1-5\"
            timezone = \"Europe/Berlin\"
            "
        ))
        .unwrap();
        let [often, nightly] = catalog.schedules() else { panic!("two") };
        assert_eq!(
            (often.name.as_str(), often.consumer.as_str(), often.datasets.names()),
            ("often", "search", &["orders".to_owned()][..])
        );
        assert_eq!((often.export_type, often.timing.to_string()), (ExportType::Delta, "every 5m".to_owned()));
        assert_eq!((often.encoding.format, often.encoding.compression), (Format::Ndjson, Compression::Zstd));
        assert_eq!((often.heals, often.runs_at_start), (true, false));
        assert_eq!((nightly.heals, nightly.runs_at_start), (false, true));
        assert_eq!((often.skip_empty, nightly.skip_empty), (Some(true), None));
        assert_eq!((often.fresh_within, nightly.fresh_within), (Some(Duration::from_secs(900)), None));
        assert_eq!(nightly.timing.to_string(), "15 2 * * 1-5 Europe/Berlin");
        assert_eq!((nightly.encoding.format, nightly.encoding.compression), (Format::Csv, Compression::None));
    }

    #[test]
    fn each_mistake_is_told_with_its_line() {
        let text = "name = \"Nightly\"
consumer = \"-\"
dataset = \"order\"
type = \"partial\"
cron = \"15 2 * *\"
format = \"xml\"
compression = \"lzma\"
[[schedule]]
name = \"a\"
consumer = \"c\"
dataset = \"orders\"
type = \"full\"
every = \"900ms\"
format = \"parquet\"
compression = \"gzip\"
heal = true
[[schedule]]
name = \"b\"
consumer = \"c\"
dataset = \"orders\"
type = \"delta\"
cron = \"0 0 * * *\"
timezone = \"Europe/Berln\"
[[schedule]]
name = \"a\"
consumer = \"c\"
dataset = \"orders\"
type = \"delta\"
every = \"1h\"
";
        let expected = [
            "line 5: schedule Nightly: name: 1 to 63 characters",
            "line 6: schedule Nightly: consumer: a consumer id has",
            "line 7: schedule Nightly: dataset: there is no dataset of this name; is it `orders`?",
            "line 8: schedule Nightly: type: `partial` is not an export type",
            "line 10: schedule Nightly: format: `xml` is not a format",
            "line 11: schedule Nightly: compression: `lzma` is not a compression",
            "line 9: schedule Nightly: cron: not five fields of cron",
            #[cfg(feature = "parquet")]
            "line 19: schedule a: compression: parquet has no gzip: its compressions are zstd, snappy, lz4, none",
            #[cfg(not(feature = "parquet"))]
            "line 18: schedule a: format: this build has no parquet: build it with `cargo build --release --features full`",
            "line 17: schedule a: every: a time from 1s to 366d",
            "line 20: schedule a: heal: a full export heals the others",
            "line 27: schedule b: timezone: there is no time zone of this name, such as Europe/Berlin; is it `Europe/Berlin`?",
            "line 28: schedule a: there is a schedule of this name already",
        ];
        let found = wrong(text);
        assert_lines(&found, &expected);
    }

    #[test]
    fn a_schedule_has_one_dataset_or_several() {
        let of = |rest: &str| format!("name = \"a\"\nconsumer = \"c\"\ntype = \"delta\"\nevery = \"1h\"\n{rest}");
        let read = |rest: &str| {
            let text = format!("{ORDERS}{}[[schedule]]\n{}", ORDERS.replace("orders", "items"), of(rest));
            Catalog::from_toml(&text).map(|catalog| catalog.schedules()[0].datasets.clone())
        };
        let listed = read("datasets = [\"orders\", \"items\"]\nheal = true").unwrap();
        assert_eq!(listed, ScheduledDatasets::Listed(vec!["items".to_owned(), "orders".to_owned()]));
        assert_eq!(read("datasets = \"*\"").unwrap(), ScheduledDatasets::All);
        for (rest, why) in [
            ("", "missing field `dataset`"),
            ("dataset = \"orders\"\ndatasets = \"*\"", "datasets: dataset names one already"),
            ("datasets = \"all\"", "datasets: `all` is neither a list of datasets nor `*`"),
            ("datasets = []", "datasets: an empty list"),
            ("datasets = [\"orders\", \"orders\"]", "datasets: `orders` is there twice"),
            ("datasets = [\"other\"]", "datasets: there is no dataset of this name"),
        ] {
            let told = read(rest).unwrap_err().to_string();
            assert!(told.contains(why), "{rest}: {told}");
        }
    }

    #[test]
    fn it_has_to_say_once_when_it_runs() {
        let of = |rest: &str| {
            wrong(&format!("name = \"a\"\nconsumer = \"c\"\ndataset = \"orders\"\ntype = \"full\"\n{rest}"))
        };
        assert_eq!(of(""), "line 4: schedule a: every: either every or cron is expected");
        let both = of("every = \"1h\"\ncron = \"0 0 * * *\"");
        assert_eq!(both, "line 10: schedule a: cron: every says already when it runs");
        let zone = of("every = \"1h\"\ntimezone = \"UTC\"");
        assert_eq!(zone, "line 10: schedule a: timezone: only with cron: every counts from 1970, UTC");
        let all = of("every = \"900ms\"\ncron = \"61 * * * *\"\ntimezone = \"Europe/Berln\"");
        let expected = [
            "line 10: schedule a: cron: every says already when it runs",
            "line 9: schedule a: every: a time from 1s to 366d",
            "line 11: schedule a: timezone: there is no time zone of this name, such as Europe/Berlin; is it `Europe/Berlin`?",
            "line 10: schedule a: cron: not five fields of cron",
        ];
        assert_lines(&all, &expected);
        let alone = of("timezone = \"Europe/Berln\"");
        let expected = [
            "line 4: schedule a: every: either every or cron is expected",
            "line 9: schedule a: timezone: there is no time zone",
        ];
        assert_lines(&alone, &expected);
        let steps = of("cron = \"*/90 */30 * * *\"");
        assert!(steps.contains("a step of 90") && steps.contains("a step of 30"), "{steps}");
        let fields = of("cron = \"61 25 * * *\"");
        assert!(fields.contains("`61`") && fields.contains("`25`"), "{fields}");
        let pieces = of("cron = \"+1 15W * * *\"");
        assert!(pieces.contains("`+1`") && pieces.contains("`15W`"), "{pieces}");
        assert_eq!(of("cron = \"0 0 30 2 *\""), "line 9: schedule a: cron: no date matches this pattern");
        assert!(of("evry = \"1h\"").starts_with("line 9: unknown field `evry`"));
        assert!(wrong("name = \"a\"\nevery = \"1h\"").contains("missing field `consumer`"));
    }
}
