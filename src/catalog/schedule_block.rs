//! Reads the `[[schedule]]` blocks of the operator's file.

use std::sync::Arc;

use chrono_tz::Tz;

use crate::catalog::block::{Block, Names, OperatorFile};
use crate::catalog::dataset_block::fresh_within;
use crate::catalog::listener::KnownNames;
use crate::job::datasets::MOST_DATASETS;
use crate::schedule::timing::{self, BadTiming, Timing};
use crate::schedule::{Schedule, ScheduledDatasets};
use cdc_dataset::hint;
use cdc_manifest::ConsumerId;
use pg_rows::encoding::{Encoding, Format};
use pg_rows::export_type::ExportType;

pub(super) fn read(file: &mut OperatorFile<'_>, names: &mut Names, known: &KnownNames<'_>) -> Vec<Arc<Schedule>> {
    let mut schedules = Vec::new();
    file.each_block("schedule", names, |block| schedules.extend(schedule(block, known).map(Arc::new)));
    schedules
}

fn schedule(block: &mut Block<'_, '_>, known: &KnownNames<'_>) -> Option<Schedule> {
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
fn datasets(block: &mut Block<'_, '_>, known: &KnownNames<'_>) -> Option<ScheduledDatasets> {
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

    use super::*;
    use crate::catalog::Catalog;
    use crate::catalog::mistake::Mistakes;
    use crate::catalog::{assert_lines, assert_refused};
    use pg_rows::encoding::Compression;

    const BLOCK: &str = "[[schedule]]
name = \"often\"
consumer = \"search\"
dataset = \"orders\"
type = \"delta\"
every = \"5m\"
";

    /// Reads a schedule of the dataset `orders`, beside which there is `items`.
    fn read(block: &str) -> Result<Arc<Schedule>, Mistakes> {
        let datasets =
            "[[dataset]]\nname = \"orders\"\ntable = \"orders\"\n[[dataset]]\nname = \"items\"\ntable = \"items\"";
        Ok(Arc::clone(&Catalog::from_toml(&format!("{datasets}\n{block}"))?.schedules()[0]))
    }

    #[test]
    fn every_member_is_read() {
        let all = "format = \"ndjson\"
compression = \"zstd\"
heal = true
run_at_start = false
skip_empty = true
fresh_within = \"15m\"";
        let all = read(&format!("{BLOCK}{all}")).unwrap();
        assert_eq!((&*all.name, all.consumer.as_str(), all.export_type), ("often", "search", ExportType::Delta));
        assert_eq!(all.datasets, ScheduledDatasets::One("orders".to_owned()));
        assert_eq!((all.encoding.format, all.encoding.compression), (Format::Ndjson, Compression::Zstd));
        assert_eq!((all.heals, all.runs_at_start, all.skip_empty), (true, false, Some(true)));
        assert_eq!((all.timing.to_string(), all.fresh_within), ("every 5m".to_owned(), Some(Duration::from_secs(900))));
        let cron = "cron = \"15 2 * * 1-5\"\ntimezone = \"Europe/Berlin\"\ndatasets = [\"orders\", \"items\"]";
        let few = BLOCK.replace("every = \"5m\"", cron).replace("dataset = \"orders\"\n", "");
        let few = read(&few).unwrap();
        assert_eq!(few.timing.to_string(), "15 2 * * 1-5 Europe/Berlin");
        assert_eq!((few.encoding.format, few.encoding.compression), (Format::Csv, Compression::None));
        assert_eq!((few.heals, few.runs_at_start, few.skip_empty, few.fresh_within), (false, true, None, None));
        assert_eq!(few.datasets, ScheduledDatasets::Listed(vec!["items".to_owned(), "orders".to_owned()]));
    }

    #[test]
    fn a_schedule_that_cannot_run_is_refused() {
        let cases = [
            ("consumer = \"-\"", "line 12: schedule often: consumer: a consumer id has"),
            ("type = \"partial\"", "type: `partial` is not an export type"),
            ("format = \"xml\"", "format: `xml` is not a format"),
            ("compression = \"lzma\"", "compression: `lzma` is not a compression"),
            #[cfg(feature = "parquet")]
            ("compression = \"gzip\"\nformat = \"parquet\"", "compression: parquet has no gzip: its compressions are"),
            #[cfg(not(feature = "parquet"))]
            ("format = \"parquet\"", "format: this build has no parquet"),
            ("type = \"full\"\nheal = true", "heal: a full export heals the others"),
            ("dataset", "missing field `dataset`"),
            ("dataset = \"order\"", "dataset: there is no dataset `order`; is it `orders`?"),
            ("datasets = \"*\"", "datasets: dataset names one already"),
            ("dataset\ndatasets = \"all\"", "datasets: `all` is neither a list of datasets nor `*`"),
            ("dataset\ndatasets = [\"orders\", \"orders\"]", "datasets: `orders` is there twice"),
            ("dataset\ndatasets = [\"other\"]", "datasets: there is no dataset `other`; there are: orders, items"),
            ("every", "every: either every or cron is expected"),
            ("every = \"900ms\"", "every: a time from 1s to 366d"),
            ("cron = \"0 0 * * *\"", "cron: every says already when it runs"),
            ("timezone = \"UTC\"", "timezone: only with cron: every counts from 1970, UTC"),
            ("every\ncron = \"15 2 * *\"", "cron: not five fields of cron"),
            ("every\ncron = \"0 0 30 2 *\"", "cron: no date matches this pattern"),
            (
                "every\ncron = \"0 0 * * *\"\ntimezone = \"Europe/Berln\"",
                "timezone: there is no time zone of this name, such as Europe/Berlin; is it `Europe/Berlin`?",
            ),
        ];
        assert_refused(BLOCK, &cases, read);
        assert_eq!(
            read(&BLOCK.replace("dataset = \"orders\"", "datasets = \"*\"")).unwrap().datasets,
            ScheduledDatasets::All
        );
    }

    #[test]
    fn every_fault_of_a_timing_is_reported() {
        let timing = "every = \"900ms\"\ncron = \"61 * * * *\"\ntimezone = \"Europe/Berln\"";
        let expected = [
            "line 13: schedule often: cron: every says already when it runs",
            "line 12: schedule often: every: a time from 1s to 366d",
            "line 14: schedule often: timezone: there is no time zone of this name",
            "line 13: schedule often: cron: not five fields of cron",
        ];
        let found = read(&BLOCK.replace("every = \"5m\"", timing)).unwrap_err().to_string();
        assert_lines(&found, &expected);
        for (cron, pieces) in [
            ("*/90 */30 * * *", ["a step of 90", "a step of 30"]),
            ("61 25 * * *", ["`61`", "`25`"]),
            ("+1 15W * * *", ["`+1`", "`15W`"]),
        ] {
            let found = read(&BLOCK.replace("every = \"5m\"", &format!("cron = \"{cron}\""))).unwrap_err().to_string();
            assert!(pieces.iter().all(|piece| found.contains(piece)), "{found}");
        }
    }
}
