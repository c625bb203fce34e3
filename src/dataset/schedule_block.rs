//! A `[[schedule]]` of the operator's file, as it is read.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;

use crate::dataset::fault::UnknownDataset;
use crate::dataset::name::{hint, is_name};
use crate::job::{ConsumerId, ExportType};
use crate::schedule::Schedule;
use crate::schedule::timing::{self, BadTiming, Timing};
use pg_rows::encoding::{BadEncoding, Compression, Encoding, Format};
use pg_rows::words::UnknownWord;

/// The members, as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScheduleBlock {
    name: Spanned<String>,
    consumer: Spanned<String>,
    dataset: Spanned<String>,
    r#type: Spanned<String>,
    every: Option<Spanned<String>>,
    cron: Option<Spanned<String>>,
    timezone: Option<Spanned<String>>,
    format: Option<Spanned<String>>,
    compression: Option<Spanned<String>>,
    heal: Option<Spanned<bool>>,
    run_at_start: Option<bool>,
}

/// What is wrong, each with its place in the text.
type Mistakes = Vec<(usize, String)>;

/// The schedules of a file, and all that is wrong with them. `dataset` looks one up by its name.
pub(super) fn read(
    blocks: Vec<Spanned<ScheduleBlock>>,
    dataset: impl Fn(&str) -> Result<(), UnknownDataset>,
) -> (Vec<Arc<Schedule>>, Mistakes) {
    let mut schedules = Vec::<Arc<Schedule>>::new();
    let (mut names, mut mistakes) = (BTreeSet::new(), Vec::new());
    for block in blocks {
        let at = block.span().start;
        let block = block.into_inner();
        let name = block.name.as_ref().clone();
        if !names.insert(name.clone()) {
            mistakes.push((at, format!("schedule {name}: there is a schedule of this name already")));
            continue;
        }
        schedules.extend(block.read(at, &dataset, &mut mistakes).map(Arc::new));
    }
    (schedules, mistakes)
}

impl ScheduleBlock {
    /// The schedule, if nothing is wrong with it; `at` is where its block begins.
    fn read(
        self,
        at: usize,
        dataset: impl Fn(&str) -> Result<(), UnknownDataset>,
        mistakes: &mut Mistakes,
    ) -> Option<Schedule> {
        let before = mistakes.len();
        let name = self.name.as_ref().clone();
        let mut wrong =
            |at: usize, member: &str, why: String| mistakes.push((at, format!("schedule {name}: {member}: {why}")));
        if !is_name(&name) {
            let why = "1 to 63 characters of a-z 0-9 _ -, beginning with a letter, are expected".to_owned();
            wrong(self.name.span().start, "name", why);
        }
        let consumer = self.consumer.as_ref().parse::<ConsumerId>();
        let consumer = consumer.map_err(|why| wrong(self.consumer.span().start, "consumer", format!("{why}"))).ok();
        if let Err(unknown) = dataset(self.dataset.as_ref()) {
            wrong(self.dataset.span().start, "dataset", unknown.to_string());
        }
        let mut word =
            |member: &str, word: &Spanned<String>, why: UnknownWord| wrong(word.span().start, member, why.to_string());
        let export_type: Option<ExportType> =
            self.r#type.as_ref().parse().map_err(|why| word("type", &self.r#type, why)).ok();
        let format = match &self.format {
            None => Some(Format::Csv),
            Some(text) => text.as_ref().parse().map_err(|why| word("format", text, why)).ok(),
        };
        let compression = match &self.compression {
            None => Some(Compression::None),
            Some(text) => text.as_ref().parse().map_err(|why| word("compression", text, why)).ok(),
        };
        let encoding = format.zip(compression).map(|(format, compression)| Encoding::new(format, compression));
        let encoding = encoding.and_then(|encoding| match encoding {
            Ok(encoding) => Some(encoding),
            Err(why) => {
                let (member, text) = match why {
                    BadEncoding::NotBuilt(_) => ("format", &self.format),
                    BadEncoding::CompressedInside(_) => ("compression", &self.compression),
                };
                wrong(text.as_ref().map_or(at, |text| text.span().start), member, why.to_string());
                None
            }
        });
        let timing = self.timing().map_err(|(place, member, why)| wrong(place.unwrap_or(at), member, why)).ok();
        let heals = self.heal.as_ref().filter(|heal| *heal.as_ref());
        if let (Some(heal), Some(ExportType::Full)) = (heals, export_type) {
            wrong(heal.span().start, "heal", "a full export heals the others, and needs it never".to_owned());
        }
        if mistakes.len() > before {
            return None;
        }
        Some(Schedule {
            heals: heals.is_some(),
            runs_at_start: self.run_at_start.unwrap_or(true),
            consumer: consumer?,
            dataset: self.dataset.into_inner(),
            export_type: export_type?,
            encoding: encoding?,
            timing: timing?,
            name,
        })
    }

    /// When it runs; else where in the text what is wrong, of which member, and why.
    fn timing(&self) -> Result<Timing, (Option<usize>, &'static str, String)> {
        let place = |text: &Spanned<String>| Some(text.span().start);
        match (&self.every, &self.cron, &self.timezone) {
            (None, None, _) => Err((None, "every", "either every or cron is expected".to_owned())),
            (Some(_), Some(cron), _) => Err((place(cron), "cron", "every says already when it runs".to_owned())),
            (Some(_), None, Some(zone)) => {
                Err((place(zone), "timezone", "only with cron: every counts from 1970, UTC".to_owned()))
            }
            (Some(every), None, None) => {
                Timing::every(every.as_ref()).map_err(|why| (place(every), "every", why.to_string()))
            }
            (None, Some(cron), zone) => {
                let name = zone.as_ref().map_or(timing::UTC, |zone| zone.as_ref().as_str());
                Timing::cron(cron.as_ref(), name).map_err(|why| match why {
                    BadTiming::Zone => {
                        let near = hint(name, timing::zones());
                        (zone.as_ref().and_then(place), "timezone", format!("{why}{near}"))
                    }
                    _ => (place(cron), "cron", why.to_string()),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::dataset::assert_lines;
    use crate::dataset::catalog::Catalog;
    use crate::job::ExportType;
    use pg_rows::encoding::{Compression, Format};

    const ORDERS: &str = "[[dataset]]\nname = \"orders\"\ntable = \"orders\"\n";

    /// What is wrong with a schedule, whose block begins in line 4.
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
            (often.name.as_str(), often.consumer.as_str(), often.dataset.as_str()),
            ("often", "search", "orders")
        );
        assert_eq!((often.export_type, often.timing.to_string()), (ExportType::Delta, "every 5m".to_owned()));
        assert_eq!((often.encoding.format, often.encoding.compression), (Format::Ndjson, Compression::Zstd));
        assert_eq!((often.heals, often.runs_at_start), (true, false));
        assert_eq!((nightly.heals, nightly.runs_at_start), (false, true));
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
compression = \"zstd\"
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
            "line 19: schedule a: compression: parquet is compressed inside",
            #[cfg(not(feature = "parquet"))]
            "line 18: schedule a: format: this service was built without parquet",
            "line 17: schedule a: every: a time from 1s to 366d",
            "line 20: schedule a: heal: a full export heals the others",
            "line 27: schedule b: timezone: there is no time zone of this name, such as Europe/Berlin; is it `Europe/Berlin`?",
            "line 28: schedule a: there is a schedule of this name already",
        ];
        let found = wrong(text);
        assert_lines(&found, &expected);
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
        assert_eq!(of("cron = \"0 0 30 2 *\""), "line 9: schedule a: cron: no day is ever such a day");
        assert!(of("evry = \"1h\"").starts_with("line 9: unknown field `evry`"));
        assert!(wrong("name = \"a\"\nevery = \"1h\"").contains("missing field `consumer`"));
    }
}
