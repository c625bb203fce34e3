//! The formats of a file: which ones a request may ask for, and that all have the same values.

use std::io::Read;
use std::path::Path;

use pg_rows::column::{Column, ColumnType};
use pg_rows::encoding::{Compression, Encoding, Format};
use pg_rows::{Encoder, Layout};
use serde_json::{Value, json};

use crate::harness::{Csv, Database, Service, Start, lacks, refusal, serving_users};

const CALLS: [&str; 5] = ["/exports", "/exports/full", "/exports/incremental", "/exports/delta", "/export/a"];

/// Runs a consumer's export with these options, which must complete. Returns its job.
async fn export(service: &Service, export_type: &str, consumer: &str, options: &Value) -> Value {
    let path = format!("/exports/{export_type}");
    let answer = service.post(&path, &[("X-Consumer-ID", consumer)], options).await;
    assert_eq!(answer.status(), 202);
    let submitted: Value = answer.json().await.unwrap();
    let job = service.completes(submitted["jobId"].as_str().unwrap()).await;
    assert_eq!(job["outputFilename"], submitted["outputFilename"]);
    job
}

#[tokio::test]
async fn every_call_takes_the_options() {
    let (_, service) = serving_users(5).await;
    for (options, ending, media_type) in [
        (json!({}), ".csv", "text/csv; charset=utf-8; header=present"),
        (json!({"format": "csv"}), ".csv", "text/csv; charset=utf-8; header=present"),
        (json!({"format": "ndjson"}), ".ndjson", "application/x-ndjson"),
        (json!({"compression": "none"}), ".csv", "text/csv; charset=utf-8; header=present"),
        (json!({"compression": "gzip"}), ".csv.gz", "application/gzip"),
        (json!({"format": "ndjson", "compression": "zstd"}), ".ndjson.zst", "application/zstd"),
        #[cfg(feature = "parquet")]
        (json!({"format": "parquet"}), ".parquet", "application/vnd.apache.parquet"),
        #[cfg(feature = "parquet")]
        (json!({"format": "parquet", "compression": "zstd"}), ".parquet", "application/vnd.apache.parquet"),
        #[cfg(feature = "parquet")]
        (json!({"format": "parquet", "compression": "lz4"}), ".parquet", "application/vnd.apache.parquet"),
        #[cfg(feature = "parquet")]
        (json!({"format": "parquet", "compression": "none"}), ".parquet", "application/vnd.apache.parquet"),
    ] {
        let default = if options["format"] == "parquet" { json!("zstd") } else { json!("none") };
        for path in CALLS {
            let answer = service.post(path, &[("X-Consumer-ID", "a")], &options).await;
            assert_eq!(answer.status(), 202, "{path} {options}");
            let job = answer.json::<Value>().await.unwrap();
            let job = service.completes(job["jobId"].as_str().unwrap()).await;
            assert_eq!(job["format"], *options.get("format").unwrap_or(&json!("csv")));
            assert_eq!(job["compression"], *options.get("compression").unwrap_or(&default));
            let name = job["outputFilename"].as_str().unwrap();
            // Several exports within a second have a number after the time.
            let stem = name.strip_suffix(ending).unwrap_or_else(|| panic!("{name} ends with {ending}"));
            assert!(!stem.contains('.'), "{name}");
            let download = format!("/exports/{}/download", job["jobId"].as_str().unwrap());
            let headers = service.call("GET", &download, &[]).await.headers().clone();
            assert_eq!(headers["content-type"], media_type);
            assert_eq!(headers["content-disposition"], format!("attachment; filename=\"{name}\""));
        }
    }
}

#[tokio::test]
async fn a_word_that_is_no_choice_is_refused_by_all_calls() {
    let service = Start::on(&Database::new().await).service().await;
    for (options, says) in [
        (json!({"format": "xml"}), "format: `xml` is not a format: csv, ndjson, parquet"),
        (json!({"format": "CSV"}), "format: `CSV` is not a format: csv, ndjson, parquet"),
        (json!({"format": null}), "format: a string is expected"),
        (json!({"compression": "brotli"}), "compression: `brotli` is not a compression: none, gzip, zstd, snappy, lz4"),
        (json!({"compression": "lz4"}), "compression: csv has no lz4: its compressions are none, gzip, zstd"),
        (
            json!({"format": "ndjson", "compression": "snappy"}),
            "compression: ndjson has no snappy: its compressions are none, gzip, zstd",
        ),
        #[cfg(feature = "parquet")]
        (
            json!({"format": "parquet", "compression": "gzip"}),
            "compression: parquet has no gzip: its compressions are zstd, snappy, lz4, none",
        ),
        (json!({"compression": null}), "compression: a string is expected"),
        #[cfg(not(feature = "parquet"))]
        (
            json!({"format": "parquet"}),
            "format: this build has no parquet: build it with `cargo build --release --features full`",
        ),
        (json!({"compression": 1}), "compression: a string is expected"),
    ] {
        let field = says.split_once(':').unwrap().0;
        for path in CALLS {
            let answer = service.post(path, &[("X-Consumer-ID", "a")], &options).await;
            assert_eq!(answer.status(), 400, "{path} {options}");
            let problem: Value = answer.json().await.unwrap();
            assert_eq!((&problem["code"], &problem["field"]), (&json!("member_invalid"), &json!(field)));
            assert!(problem["detail"].as_str().unwrap().starts_with(says), "{problem}");
        }
    }
}

#[tokio::test]
async fn the_options_are_part_of_the_request() {
    let (database, service) = serving_users(0).await;
    let held = database.hold_exports().await;
    let keyed = [("X-Consumer-ID", "a"), ("Idempotency-Key", "k")];
    let options = json!({"format": "ndjson", "compression": "gzip"});
    let first: Value = service.post("/exports/delta", &keyed, &options).await.json().await.unwrap();
    let again: Value = service.post("/exports/delta", &keyed, &options).await.json().await.unwrap();
    assert_eq!(first, again);
    for other in [
        json!({}),
        json!({"compression": "gzip"}),
        json!({"format": "ndjson"}),
        json!({"format": "ndjson", "compression": "zstd"}),
    ] {
        let answer = service.post("/exports/delta", &keyed, &other).await;
        assert_eq!(refusal(answer).await, (422, "idempotency_key_reused".to_owned()), "{other}");
    }
    let id = first["jobId"].as_str().unwrap();
    service.call("POST", &format!("/exports/{id}/cancel"), &[]).await;
    service.becomes(id, "cancelled").await;
    held.rollback().await.unwrap();
    let retried = service.call("POST", &format!("/exports/{id}/retry"), &[]).await;
    assert_eq!(retried.status(), 202);
    let retried: Value = retried.json().await.unwrap();
    let job = service.ended(retried["jobId"].as_str().unwrap()).await;
    assert_eq!((&job["format"], &job["compression"]), (&json!("ndjson"), &json!("gzip")), "{job}");
    assert!(job["outputFilename"].as_str().unwrap().ends_with(".ndjson.gz"), "{job}");
}

#[tokio::test]
async fn the_formats_hold_the_same_values() {
    let database = Database::new().await;
    hostile_users(&database).await;
    let service = Start::on(&database).service().await;
    for export_type in ["full", "delta"] {
        let csv = export(&service, export_type, &format!("{export_type}-csv"), &json!({})).await;
        let consumer = format!("{export_type}-ndjson");
        let ndjson = export(&service, export_type, &consumer, &json!({"format": "ndjson"})).await;
        assert_eq!(csv["rowsExported"], ndjson["rowsExported"]);
        let header = Csv::read(&service.path(&csv)).header;
        let expected = values_of_csv(&service.path(&csv));
        let text = std::fs::read_to_string(service.path(&ndjson)).unwrap();
        let lines = text.strip_suffix('\n').unwrap().split('\n');
        let found: Vec<Vec<Option<String>>> = lines.map(|line| values_of_json(&header, line)).collect();
        assert_eq!(sorted(found), sorted(expected), "{export_type}");
    }
}

#[cfg(feature = "parquet")]
mod in_parquet {
    use chrono::{DateTime, Datelike, SecondsFormat};
    use parquet::basic::{self, LogicalType};
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    use crate::catalog::{Catalog, ended};

    use super::*;

    fn opened(path: impl AsRef<Path>) -> SerializedFileReader<std::fs::File> {
        SerializedFileReader::new(std::fs::File::open(path).unwrap()).unwrap()
    }

    /// Returns the names of the columns, and the values as the CSV has them.
    fn read(path: &Path) -> (Vec<String>, Vec<Vec<Option<String>>>) {
        let file = opened(path);
        let columns = file.metadata().file_metadata().schema_descr().columns();
        let names = columns.iter().map(|column| column.name().to_owned()).collect();
        let text = |field: &Field| match field {
            Field::Null => None,
            Field::Int(number) => Some(number.to_string()),
            Field::Long(number) => Some(number.to_string()),
            Field::Bool(flag) => Some(flag.to_string()),
            Field::Str(text) => Some(text.clone()),
            Field::TimestampMicros(micros) => Some(time(*micros)),
            other => Some(decimal(other)),
        };
        let rows = file.get_row_iter(None).unwrap().map(Result::unwrap);
        (names, rows.map(|row| row.get_column_iter().map(|(_, field)| text(field)).collect()).collect())
    }

    fn time(micros: i64) -> String {
        let time = DateTime::from_timestamp_micros(micros).unwrap();
        let text = time.to_rfc3339_opts(SecondsFormat::Micros, true);
        match time.year() {
            year @ ..=0 => format!("{:04}{} BC", 1 - year, &text[text.rfind("-03-15").unwrap()..]),
            _ => text.trim_start_matches('+').to_owned(),
        }
    }

    #[tokio::test]
    async fn parquet_holds_what_csv_holds() {
        let database = Database::new().await;
        hostile_users(&database).await;
        database.run("update users set created_at = now(), updated_at = now() where email = 'most'").await;
        let service = Start::on(&database).service().await;
        for export_type in ["full", "delta"] {
            let csv = export(&service, export_type, &format!("{export_type}-csv"), &json!({})).await;
            let consumer = format!("{export_type}-parquet");
            let parquet = export(&service, export_type, &consumer, &json!({"format": "parquet"})).await;
            let (header, rows) = read(&service.path(&parquet));
            assert_eq!(header, Csv::read(&service.path(&csv)).header);
            assert_eq!(sorted(rows), sorted(values_of_csv(&service.path(&csv))), "{export_type}");
            for what in ["rowsExported", "watermarkTo"] {
                assert_eq!(csv[what], parquet[what]);
            }
        }
    }

    /// Returns the codec of a file's columns, which must all have the same.
    fn codec(path: &Path) -> basic::Compression {
        let file = opened(path);
        let mut codecs = file.metadata().row_group(0).columns().iter().map(|column| column.compression());
        let first = codecs.next().unwrap();
        assert!(codecs.all(|other| other == first));
        first
    }

    #[tokio::test]
    async fn each_compression_of_parquet_is_in_the_footer_and_in_the_job() {
        let database = Database::with_users(5_000).await;
        let service = Start::on(&database).with("COMPRESSION_LEVEL", 3).service().await;
        let expected = sorted(values_of_csv(&service.path(&export(&service, "full", "csv", &json!({})).await)));
        let mut bytes = Vec::new();
        for (word, in_footer) in [
            ("zstd", basic::Compression::ZSTD(basic::ZstdLevel::default())),
            ("snappy", basic::Compression::SNAPPY),
            ("lz4", basic::Compression::LZ4_RAW),
            ("none", basic::Compression::UNCOMPRESSED),
        ] {
            let job = export(&service, "full", word, &json!({"format": "parquet", "compression": word})).await;
            let path = service.path(&job);
            assert_eq!((&job["compression"], codec(&path)), (&json!(word), in_footer));
            let (_, rows) = read(&path);
            assert!(sorted(rows) == expected, "{word}");
            assert_eq!(service.manifest(&job).await["export"]["compression"], word);
            let body = json!({"datasets": ["users"], "format": "parquet", "compression": word});
            let of_datasets = ended(&service, "/exports/full", Some(&format!("{word}-datasets")), body).await;
            assert_eq!(of_datasets["compression"], word, "{of_datasets}");
            assert_eq!(codec(&service.path(&of_datasets["exports"][0])), in_footer);
            bytes.push(job["bytesWritten"].as_u64().unwrap());
        }
        let none = bytes.pop().unwrap();
        assert!(bytes.iter().all(|packed| packed * 10 < none * 9), "{bytes:?} of {none}");
    }

    #[tokio::test]
    async fn an_infinite_time_fails_a_parquet_for_good_and_no_other() {
        let database = Database::with_users(3).await;
        database.run("update users set updated_at = 'infinity' where id = 2").await;
        let service = Start::on(&database).service().await;
        let answer = service.post("/exports/full", &[("X-Consumer-ID", "a")], &json!({"format": "parquet"})).await;
        let id = answer.json::<Value>().await.unwrap()["jobId"].as_str().unwrap().to_owned();
        let job = service.ended(&id).await;
        assert_eq!((&job["status"], &job["attempt"]), (&json!("failed"), &json!(1)));
        assert_eq!(job["error"]["code"], "not_in_format");
        let detail = job["error"]["detail"].as_str().unwrap();
        assert!(detail.starts_with("column `updated_at` holds infinity, for which the format has no form"), "{detail}");
        assert_eq!(service.watermark("a").await, None);
        assert!(service.files().is_empty());
        export(&service, "full", "a", &json!({"format": "ndjson"})).await;
    }

    /// A time before year 1 has the form that docs/FORMATS.md says, which Postgres reads, and is a number in Parquet.
    #[tokio::test]
    async fn a_time_before_year_1_comes_back_from_every_format() {
        let changes = "
            create table ides (id int primary key, day date, local timestamp, made timestamptz);
            insert into ides values (1, '0044-03-15 BC', '0044-03-15 12:00 BC', '0044-03-15 12:00:00.5+00 BC')";
        let database = Database::empty_with(changes).await;
        let catalog = Catalog::of("[[dataset]]\nname = \"ides\"\ntable = \"ides\"\ncapture = \"none\"\n");
        let service = catalog.start(&database).service().await;
        let export = async |format: &str| {
            let job = ended(&service, "/exports/full", Some("a"), json!({"dataset": "ides", "format": format})).await;
            service.path(&job)
        };
        let csv = std::fs::read_to_string(export("csv").await).unwrap();
        let texts = ["0044-03-15 BC", "0044-03-15T12:00:00.000000 BC", "0044-03-15T12:00:00.500000Z BC"];
        assert_eq!(csv, format!("id,day,local,made\n1,{}\n", texts.join(",")));
        let ndjson = std::fs::read_to_string(export("ndjson").await).unwrap();
        let names = ["id".to_owned(), "day".to_owned(), "local".to_owned(), "made".to_owned()];
        assert_eq!(values_of_json(&names, &ndjson)[1..], texts.map(|text| Some(text.to_owned())));
        let values = texts.join("', '");
        let same: i64 = database
            .one(
                &format!("select count(*) from ides where (day, local, made) = ('{values}')")
                    .replace("= ('", "= (date '"),
            )
            .await;
        assert_eq!(same, 1, "Postgres reads {values}");

        let row = opened(export("parquet").await).get_row_iter(None).unwrap().next().unwrap().unwrap();
        let fields: Vec<_> = row.get_column_iter().map(|(_, field)| field.clone()).collect();
        let day: i32 = database.one("select day - date '1970-01-01' from ides").await;
        let micros = |column: &str| format!("select (extract(epoch from {column}) * 1000000)::bigint from ides");
        let local: i64 = database.one(&micros("local")).await;
        let made: i64 = database.one(&micros("made")).await;
        assert_eq!(fields[1..], [Field::Date(day), Field::TimestampMicros(local), Field::TimestampMicros(made)]);
    }

    /// Returns a number of Parquet as text. Parquet has its units, the highest byte first.
    fn decimal(field: &Field) -> String {
        let Field::Decimal(decimal) = field else { panic!("{field} is no decimal") };
        let sign = if decimal.data()[0] < 0x80 { 0 } else { 0xff };
        let mut bytes = [sign; 16];
        bytes[16 - decimal.data().len()..].copy_from_slice(decimal.data());
        let (units, scale) = (i128::from_be_bytes(bytes), decimal.scale() as usize);
        let digits = format!("{:0>width$}", units.unsigned_abs(), width = scale + 1);
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        format!("{}{whole}{}{fraction}", if units < 0 { "-" } else { "" }, if scale > 0 { "." } else { "" })
    }

    #[tokio::test]
    async fn a_numeric_of_declared_digits_is_a_decimal_unless_the_dataset_says_text() {
        let database = Database::empty().await;
        let nines = "9".repeat(38);
        // Postgres has such scales since 15.
        let [rounded, finer] =
            if database.postgres_version().await >= 15 { ["numeric(4, -2)", "numeric(2, 4)"] } else { ["numeric"; 2] };
        database
            .run(&format!(
                "create domain cents as numeric(5, 2);
                 create table amounts (id int primary key, price numeric(10, 2), whole numeric(38), tiny numeric(38, 38), dom cents,
                   free numeric, rounded {rounded}, finer {finer}, key uuid, at timestamptz not null default now());
                 insert into amounts values
                   (1, 0, 0, 0, 0, 1.50, 100, 0.0012, '00000000-0000-0000-0000-00000000000a'),
                   (2, -12345678.90, {nines}, 0.{nines}, -999.99, 1e-30, -9900, -0.0099, null),
                   (3, 99999999.99, -{nines}, -0.{nines}, 0.01, -5, 0, 0, 'ffffffff-ffff-ffff-ffff-ffffffffffff'),
                   (4, null, null, null, null, 'NaN', null, null, null)"
            ))
            .await;
        let catalog = Catalog::of(
            "[[dataset]]\nname = \"amounts\"\ntable = \"amounts\"\nupdated_at = \"at\"\nexclude = [\"at\"]
             capture = \"timestamp\"\nuuid = \"text\"
             [[dataset]]\nname = \"texts\"\ntable = \"amounts\"\nupdated_at = \"at\"\nexclude = [\"at\", \"key\"]
             capture = \"timestamp\"\nnumeric = \"text\"\n",
        );
        let service = catalog.start(&database).service().await;
        let ask = |format: &str| json!({"dataset": "amounts", "format": format});
        let csv = ended(&service, "/exports/full", Some("a"), ask("csv")).await;
        let parquet = ended(&service, "/exports/full", Some("b"), ask("parquet")).await;
        let file = opened(service.path(&parquet));
        let schema = file.metadata().file_metadata().schema_descr();
        let types: Vec<_> =
            schema.columns().iter().map(|it| (it.logical_type_ref().cloned(), it.physical_type())).collect();
        let decimal_of = |precision, scale, physical| (Some(LogicalType::decimal(scale, precision)), physical);
        let bytes = basic::Type::FIXED_LEN_BYTE_ARRAY;
        assert_eq!(
            types[1..5],
            [
                decimal_of(10, 2, basic::Type::INT64),
                decimal_of(38, 0, bytes),
                decimal_of(38, 38, bytes),
                decimal_of(5, 2, basic::Type::INT32)
            ]
        );
        // A number without declared digits, or with more than a type of Parquet has, stays a text.
        assert!(types[5..].iter().all(|(logical, _)| *logical == Some(LogicalType::String)), "{types:?}");
        let (_, rows) = read(&service.path(&parquet));
        assert_eq!(rows.len(), 4);
        assert_eq!(sorted(rows), sorted(values_of_csv(&service.path(&csv))));

        database.run("insert into amounts (id, price) values (5, 'NaN')").await;
        let failed = ended(&service, "/exports/full", Some("b"), ask("parquet")).await;
        assert_eq!(failed["error"]["code"], "not_in_format", "{failed}");
        let detail = failed["error"]["detail"].as_str().unwrap();
        assert!(detail.starts_with("column `price`") && detail.contains("`unrepresentable`"), "{failed}");
        let texts = |format: &str| json!({"dataset": "texts", "format": format});
        let csv = ended(&service, "/exports/full", Some("a"), texts("csv")).await;
        let (_, rows) = read(&service.path(&ended(&service, "/exports/full", Some("b"), texts("parquet")).await));
        assert_eq!(sorted(rows), sorted(values_of_csv(&service.path(&csv))));
    }

    #[tokio::test]
    async fn unrepresentable_values_fail_or_become_null_or_text() {
        let changes = "
            create table odd (id bigint primary key, d date, t time, ts timestamp, tz timestamptz, amount numeric(6, 2));
            insert into odd values (1, '2026-02-26', '04:30', '2026-02-26 04:30', '2026-02-26 04:30Z', 1.5),
              (2, 'infinity', '24:00', '-infinity', 'infinity', 'NaN'), (3, '-infinity', null, '294276-12-31', null, null)";
        let database = Database::empty_with(changes).await;
        let choices = [
            ("fail", ""),
            ("times", "time = \"text\""),
            ("null", "unrepresentable = \"null\""),
            ("text", "unrepresentable = \"text\""),
        ];
        let block =
            |(name, choice): (&str, &str)| format!("[[dataset]]\nname = \"{name}\"\ntable = \"odd\"\n{choice}\n");
        let catalog = Catalog::of(&choices.map(block).concat());
        let service = catalog.serving(&database, &["fail"]).await;
        let export = async |dataset: &str, format: &str| {
            ended(&service, "/exports/full", Some("a"), json!({"dataset": dataset, "format": format})).await
        };
        let csv = export("fail", "csv").await;
        let csv = sorted(values_of_csv(&service.path(&csv)));
        for dataset in ["fail", "times"] {
            let failed = export(dataset, "parquet").await;
            assert_eq!(failed["error"]["code"], "not_in_format", "{failed}");
        }
        let (_, rows) = read(&service.path(&export("text", "parquet").await));
        assert_eq!(sorted(rows), csv);
        let null = export("null", "parquet").await;
        let rows = values(&service.path(&null));
        assert_eq!(
            rows[1..],
            [["2", "null", "null", "null", "null", "null"], ["3", "null", "null", "null", "null", "null"]]
        );
        assert!(rows[0].iter().all(|value| value != "null"), "{rows:?}");

        // A value of the key is never NULL.
        database.run("alter table odd drop constraint odd_pkey; update odd set d = date '2026-01-01' where id <> 2; alter table odd add primary key (id, d)").await;
        catalog.track(&database, "fail").await;
        let failed = export("null", "parquet").await;
        assert_eq!(failed["error"]["code"], "not_in_format", "{failed}");
        database.run("alter table odd drop constraint odd_pkey; alter table odd alter d drop not null; alter table odd add primary key (id)").await;
        catalog.track(&database, "fail").await;

        // The time alone.
        database
            .run("delete from odd where id = 3; update odd set d = null, ts = null, tz = null, amount = null")
            .await;
        let times = export("times", "parquet").await;
        let file = opened(service.path(&times));
        let types =
            file.metadata().file_metadata().schema_descr().columns().iter().map(|it| it.logical_type_ref().cloned());
        assert_eq!(types.collect::<Vec<_>>()[1..3], [Some(LogicalType::Date), Some(LogicalType::String)]);
        let (_, rows) = read(&service.path(&times));
        assert_eq!(sorted(rows)[1][2].as_deref(), Some("24:00:00.000000"));
    }

    /// Returns the rows of a file, each value as the library writes it.
    fn values(path: &Path) -> Vec<Vec<String>> {
        let file = opened(path);
        let rows = file.get_row_iter(None).unwrap().map(Result::unwrap);
        sorted(rows.map(|row| row.get_column_iter().map(|(_, field)| field.to_string()).collect()).collect())
    }

    #[tokio::test]
    async fn an_array_is_a_list_where_the_dataset_says_so() {
        let changes = "
            create domain scores as int[]; create type mood as enum ('calm');
            create table lists (key int[] primary key, small int2[], big int8[], name text[], code varchar(3)[], price numeric(9, 2)[],
              free numeric[], ref uuid[], photo bytea[], day date[], made timestamptz[], opens time[], raw json[], doc jsonb[], flag bool[],
              ratio float8[], dom scores, secret int[], host inet[], feel mood[]);
            insert into lists values
              ('{1}', '{-1,null,2}', '{9223372036854775807}', '{null,NULL,\"NULL\",\"\",\"a,b\"}', '{abc,null}', '{1.50,null,-9999999.99}',
               '{1.500,NaN}', '{0b7c3a52-65a1-4c5e-8a3c-1f2e3d4c5b6a}', array['\\x00ff'::bytea, '\\x'], '{1970-01-02}',
               '{1970-01-01 00:00:01+00}', '{00:00:01}', array['{ }'::json], array['[1]'::jsonb, null], '{t,f,null}', '{0.5}', '{7}', '{8}',
               '{::1}', '{calm}'),
              ('{2}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')";
        let database = Database::empty_with(changes).await;
        database.run("insert into lists (key) values ('{3,null}')").await;
        let options = "mask = { secret = \"fixed *\" }\nuuid = \"text\"\narrays = \"list\"";
        let catalog = Catalog::of(&format!("[[dataset]]\nname = \"lists\"\ntable = \"lists\"\n{options}\n"));
        let service = catalog.serving(&database, &["lists"]).await;
        let body = json!({"dataset": "lists", "format": "parquet"});
        let full = ended(&service, "/exports/full", Some("a"), body.clone()).await;
        let written = [
            ["[1]", "[-1, null, 2]", "[9223372036854775807]", r#"[null, null, "NULL", "", "a,b"]"#, r#"["abc", null]"#],
            ["[2]", "[]", "[]", "[]", "[]"],
            ["[3, null]", "null", "null", "null", "null"],
        ];
        let rows = values(&service.path(&full));
        assert_eq!(rows.iter().map(|row| &row[..5]).collect::<Vec<_>>(), written);
        let others = [
            "[1.50, null, -9999999.99]",
            r#"["1.500", "NaN"]"#,
            r#"["0b7c3a52-65a1-4c5e-8a3c-1f2e3d4c5b6a"]"#,
            "[[0, 255], []]",
            "[1970-01-02]",
            "[1970-01-01 00:00:01.000000 +00:00]",
            "[00:00:01.000000]",
            r#"["{ }"]"#,
            r#"["[1]", null]"#,
            "[true, false, null]",
            "[0.5]",
            "[7]",
            // A masked column, and types whose values are texts.
            "\"*\"",
            "\"{::1}\"",
            "\"{calm}\"",
        ];
        assert_eq!(rows[0][5..], others);

        // Texts in the other formats.
        let csv = ended(&service, "/exports/full", Some("a"), json!({"dataset": "lists"})).await;
        let texts = sorted(values_of_csv(&service.path(&csv)));
        assert_eq!(texts[0][..2], [Some("{1}".to_owned()), Some("{-1,NULL,2}".to_owned())]);
        assert_eq!(csv["schemaChanged"], false, "{csv}");

        database.run("delete from lists where key <> '{2}'; update lists set name = '{x}' where key = '{2}'").await;
        let rows = values(&service.path(&ended(&service, "/exports/delta", Some("a"), body.clone()).await));
        let found: Vec<_> = rows.iter().map(|row| &row[..5]).collect();
        assert_eq!(
            found,
            [
                ["\"DELETE\"", "[1]", "null", "null", "null"],
                ["\"DELETE\"", "[3, null]", "null", "null", "null"],
                ["\"UPDATE\"", "[2]", "[]", "[]", "[\"x\"]"],
            ]
        );
        service.stop().await;

        catalog.write(&std::fs::read_to_string(catalog.path()).unwrap().replace("\"list\"", "\"text\""));
        let service = catalog.start(&database).service().await;
        let texts = ended(&service, "/exports/full", Some("a"), body).await;
        assert_eq!(texts["schemaChanged"], true, "{texts}");
        assert_eq!(values(&service.path(&texts))[0][..2], ["\"{2}\"", "\"{}\""]);
    }

    #[tokio::test]
    async fn an_array_that_is_no_list_fails_or_becomes_null() {
        let changes = "
            create table odd (id int primary key, n int[], d date[]);
            insert into odd values (1, '{{1,2},{3,4}}', '{2026-02-26}'), (2, '{1}', '{infinity,1970-01-02}')";
        let database = Database::empty_with(changes).await;
        let block = |(name, choice): (&str, &str)| {
            format!("[[dataset]]\nname = \"{name}\"\ntable = \"odd\"\narrays = \"list\"\n{choice}\n")
        };
        let catalog = Catalog::of(&[("fail", ""), ("null", "unrepresentable = \"null\"")].map(block).concat());
        catalog.track(&database, "fail").await;
        let service = catalog.start(&database).with("CELL_MAX_BYTES", 65536).service().await;
        let export = async |dataset: &str| {
            ended(&service, "/exports/full", Some("a"), json!({"dataset": dataset, "format": "parquet"})).await
        };
        let detail = async |says: &str| {
            let failed = export("fail").await;
            assert_eq!(failed["error"]["code"], "not_in_format", "{failed}");
            assert!(failed["error"]["detail"].as_str().unwrap().starts_with(says), "{failed}");
        };
        detail("column `n` holds an array of 2 dimensions, for which the format has no form").await;
        assert_eq!(
            values(&service.path(&export("null").await)),
            [["1", "null", "[2026-02-26]"], ["2", "[1]", "[null, 1970-01-02]"]]
        );
        database.run("update odd set n = '[0:1]={1,2}', d = null").await;
        detail("column `n` holds an array whose first index is 0, for which").await;
        database.run("update odd set n = '{}', d = '{infinity}'").await;
        detail("column `d` holds infinity, for which").await;

        // An element takes eight bytes.
        database.run("update odd set d = null, n = array_fill(1, array[8189])").await;
        assert_eq!(export("fail").await["status"], "completed");
        database.run("update odd set n = n || 1").await;
        assert_eq!(export("fail").await["error"]["code"], "row_too_large");
    }

    #[tokio::test]
    async fn a_large_parquet_has_many_groups_and_an_empty_one_none() {
        let (database, service) = serving_users(0).await;
        let empty = export(&service, "delta", "a", &json!({"format": "parquet"})).await;
        let (header, rows) = read(&service.path(&empty));
        assert_eq!((header.len(), header[0].as_str(), rows.len()), (7, "operation", 0));
        assert_eq!(empty["bytesWritten"], std::fs::metadata(service.path(&empty)).unwrap().len());

        database.add_users(1, 150_000).await;
        let job = export(&service, "full", "a", &json!({"format": "parquet"})).await;
        let (_, rows) = read(&service.path(&job));
        let ids = rows.iter().map(|row| row[0].as_ref().unwrap().parse::<i64>().unwrap());
        assert_eq!(sorted(ids.collect()), (1..=150_000).filter(|id| id % 10 != 0).collect::<Vec<_>>());
        assert!(opened(service.path(&job)).num_row_groups() > 1);
    }
}

fn sorted<T: Ord>(mut rows: Vec<T>) -> Vec<T> {
    rows.sort();
    rows
}

/// Returns the values of a line, in the order of the columns, which must be that of the members.
fn values_of_json(columns: &[String], line: &str) -> Vec<Option<String>> {
    let object: serde_json::Map<String, Value> = serde_json::from_str(line).unwrap();
    assert_eq!(object.len(), columns.len());
    let at = |name: &String| line.find(&format!("\"{name}\":")).unwrap();
    assert!(columns.is_sorted_by_key(at), "{line}");
    let value = |name: &String| match (name.as_str(), &object[name]) {
        (_, Value::Null) => None,
        ("id", Value::Number(number)) => Some(number.to_string()),
        ("is_deleted", Value::Bool(flag)) => Some(flag.to_string()),
        (name, Value::String(text)) if !["id", "is_deleted"].contains(&name) => Some(text.clone()),
        (name, other) => panic!("{name} is {other}"),
    };
    columns.iter().map(value).collect()
}

/// Returns the values of a CSV. Distinguishes NULL from the empty text, which no ordinary reader does.
fn values_of_csv(path: &Path) -> Vec<Vec<Option<String>>> {
    let text = std::fs::read_to_string(path).unwrap();
    let (mut rows, mut row, mut field) = (Vec::new(), Vec::new(), None::<String>);
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.get_or_insert_default().push('"');
            }
            '"' => {
                quoted = !quoted;
                field.get_or_insert_default();
            }
            ',' if !quoted => row.push(field.take()),
            '\n' if !quoted => {
                row.push(field.take());
                rows.push(std::mem::take(&mut row));
            }
            c => field.get_or_insert_default().push(c),
        }
    }
    rows.split_off(1)
}

/// Adds users with every value that a format may stumble on.
async fn hostile_users(database: &Database) {
    database.run("alter table users alter column name drop not null").await;
    database.add_users(1001, 1030).await;
    let texts = [
        "",
        " ",
        "a,b",
        "\"",
        "\\",
        "\\N",
        "line\nfeed",
        "\r\n",
        "\t\u{8}\u{c}\u{1}\u{1f}\u{7f}",
        "\u{feff}x",
        "null",
        "👩‍🚀",
        "\u{2028}",
    ];
    for (i, text) in texts.iter().enumerate() {
        let insert = "insert into users (name, email, created_at, updated_at) values ($1, $2, now(), now())";
        sqlx::query(insert).bind(text).bind(format!("{i}{text}")).execute(&database.pool).await.unwrap();
    }
    let changes = "
        insert into users (id, name, email, created_at, updated_at) values
        (9223372036854775807, null, 'most', 'infinity', '-infinity'),
        (-9223372036854775808, null, 'least', '0044-03-15 00:00:00.000001+00 BC', '12026-07-04 05:06:07.89+00')";
    database.run(changes).await;
}

/// Unpacks a file. The unpacker must report no problem, and must read the whole file.
fn unpacked(compression: &str, path: &Path) -> Vec<u8> {
    if compression == "zstd" {
        return zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap();
    }
    let output = std::process::Command::new("gzip").args(["-d", "-c"]).arg(path).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    output.stdout
}

#[tokio::test]
async fn a_compressed_file_is_the_plain_one_packed() {
    if lacks("gzip", "gzip") {
        return;
    }
    let database = Database::new().await;
    // Makes a file of several frames.
    database.add_users(1, 40_000).await;
    let one_reader = Start::on(&database).with("READERS", 1).with("COMPRESSION_LEVEL", 3).service().await;
    let service = &one_reader;
    for export_type in ["full", "delta"] {
        let of = |compression: &str| format!("{export_type}-{compression}");
        let plain = export(service, export_type, &of("none"), &json!({})).await;
        let plain_bytes = std::fs::read(service.path(&plain)).unwrap();
        assert!(plain_bytes.len() > 2 << 20);
        for compression in ["gzip", "zstd"] {
            let job = export(service, export_type, &of(compression), &json!({ "compression": compression })).await;
            let packed = std::fs::read(service.path(&job)).unwrap();
            assert!(packed.len() < plain_bytes.len() / 2);
            assert_eq!(job["bytesWritten"], packed.len());
            let sha256 = ring::digest::digest(&ring::digest::SHA256, &packed);
            let hex: String = sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(job["sha256"], hex, "of the file as it is on disk");
            assert!(unpacked(compression, &service.path(&job)) == plain_bytes, "{export_type} {compression}");
        }
    }
}

#[tokio::test]
async fn a_job_of_an_unknown_format_is_left_to_other_processes() {
    let (database, service) = serving_users(0).await;
    let (held, first) = service.held_export(&database, "full", "a").await;
    let next: [String; 2] = [service.submit("full", "a").await, service.submit("full", "b").await];
    database.run(&format!("update cdc_export.jobs set format = 'avro' where id = '{}'", next[0])).await;
    held.rollback().await.unwrap();
    service.ended(&first).await;
    service.ended(&next[1]).await;
    let status: String = database.one(&format!("select status from exports where job = '{}'", next[0])).await;
    assert_eq!(status, "pending");
}

/// Returns the text of a file's first frame, as a reader that knows no second one has it.
fn first_frame(compression: &str, file: &[u8]) -> String {
    let mut text = String::new();
    if compression == "gzip" {
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    } else {
        zstd::Decoder::new(file).unwrap().single_frame().read_to_string(&mut text).unwrap();
        assert_eq!(zstd::zstd_safe::get_frame_content_size(file).unwrap(), Some(text.len() as u64));
    }
    text
}

#[test]
fn first_frame_begins_with_the_header_and_has_all_of_a_file_of_a_mebibyte() {
    for compression in [Compression::Gzip, Compression::Zstd] {
        let encoding = Encoding { format: Format::Csv, compression };
        let layout = Layout::new(encoding, vec![Column::new("v", ColumnType::Text)], None).unwrap();
        // Each value is a piece.
        let file = |values: &[&str]| {
            let (mut assembler, mut file) = layout.begin().unwrap();
            for value in values {
                let mut encoder = Encoder::new(&layout);
                encoder.row(&[Some(value.as_bytes())]).unwrap();
                file.extend(assembler.append(encoder.pack().unwrap()).unwrap());
            }
            file.extend(assembler.finish().unwrap());
            file
        };
        let first = |values: &[&str]| first_frame(compression.as_str(), &file(values));
        assert_eq!(first(&[]), "v\n");
        assert_eq!(first(&["a", "b"]), "v\na\nb\n");
        let rest = "b".repeat((1 << 20) - "v\na\n\n".len());
        assert!(first(&["a", &rest]) == format!("v\na\n{rest}\n"), "{compression}");
        let more = rest.clone() + "b";
        assert!(first(&["a", &more, "c"]) == format!("v\na\n{more}\n"), "{compression}");
    }
}

#[tokio::test]
async fn a_small_compressed_file_is_one_gzip_member_or_zstd_frame() {
    let (database, service) = serving_users(300).await;
    export(&service, "full", "gzip", &json!({})).await;
    export(&service, "full", "zstd", &json!({})).await;
    // Rows of both reads of a delta: those that are there, and those that are gone.
    database.run("update users set name = 'Ada' where id < 100; delete from users where id > 200").await;
    for export_type in ["delta", "full"] {
        for compression in ["gzip", "zstd"] {
            let job = export(&service, export_type, compression, &json!({ "compression": compression })).await;
            let first = first_frame(compression, &std::fs::read(service.path(&job)).unwrap());
            let rows = job["rowsExported"].as_u64().unwrap();
            assert!(rows > 150);
            assert_eq!(first.lines().count() as u64, 1 + rows, "{export_type} {compression}");
        }
    }
}

#[tokio::test]
async fn an_export_of_no_rows_is_a_file_of_its_format() {
    if lacks("gzip", "gzip") {
        return;
    }
    let service = Start::on(&Database::new().await).service().await;
    for export_type in ["full", "incremental", "delta"] {
        let job = export(&service, export_type, "a", &json!({"format": "ndjson"})).await;
        assert_eq!((&job["rowsExported"], &job["bytesWritten"]), (&json!(0), &json!(0)));
        assert_eq!(std::fs::read(service.path(&job)).unwrap(), b"");
        for compression in ["gzip", "zstd"] {
            let options = json!({"format": "ndjson", "compression": compression});
            assert_eq!(unpacked(compression, &service.path(&export(&service, export_type, "a", &options).await)), b"");
        }
    }
}
