//! Every type that the encoder knows by its binary form: what Postgres sent comes back from the files, value by value.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use pg_rows::column::{Column, ColumnType};
use pg_rows::encoding::{Encoding, Format};
use pg_rows::row::BinaryRows;
use pg_rows::{Encoder, Layout};
use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Executor, Postgres};

use crate::harness::Database;

/// Each with its name in Postgres. Its values are in the table `of_{name}` of `types.sql`.
pub(crate) const TYPES: [(ColumnType, &str); 16] = [
    (ColumnType::Int2, "int2"),
    (ColumnType::Int4, "int4"),
    (ColumnType::Int8, "int8"),
    (ColumnType::Float4, "float4"),
    (ColumnType::Float8, "float8"),
    (ColumnType::Numeric, "numeric"),
    (ColumnType::Bool, "bool"),
    (ColumnType::Text, "text"),
    (ColumnType::Uuid, "uuid"),
    (ColumnType::Bytea, "bytea"),
    (ColumnType::Json, "json"),
    (ColumnType::Jsonb, "jsonb"),
    (ColumnType::Timestamptz, "timestamptz"),
    (ColumnType::Timestamp, "timestamp"),
    (ColumnType::Date, "date"),
    (ColumnType::Time, "time"),
];

/// Before the first row of a COPY, and behind the last one (PostgreSQL documentation, "COPY", "Binary Format").
const HEADER_BYTES: usize = 19;
const TRAILER_BYTES: usize = 2;

/// A connection to a database with all the values.
async fn values() -> PoolConnection<Postgres> {
    let database = Database::empty().await;
    let mut connection = database.pool.acquire().await.unwrap();
    connection.execute(include_str!("types.sql")).await.unwrap();
    connection
}

/// The file of a query's rows, each an `id` and a value.
async fn file(connection: &mut PoolConnection<Postgres>, format: Format, kind: ColumnType, query: &str) -> Vec<u8> {
    let copied = connection.copy_out_raw(&format!("copy ({query}) to stdout (format binary)")).await.unwrap();
    let copied = copied.try_collect::<Vec<Bytes>>().await.unwrap().concat();
    let columns = vec![Column::new("id", ColumnType::Int8), Column::new("v", kind)];
    file_of(format, columns, &copied[HEADER_BYTES..copied.len() - TRAILER_BYTES])
}

/// The file of these rows, which one encoder makes.
pub(crate) fn file_of(format: Format, columns: Vec<Column>, rows: &[u8]) -> Vec<u8> {
    let encoding = Encoding::new(format, None).unwrap();
    let layout = Arc::new(Layout::new(encoding, columns, None).unwrap());
    let mut encoder = Encoder::new(&layout);
    let (mut rows, mut fields) = (BinaryRows::new(rows), Vec::new());
    while rows.next_into(&mut fields).unwrap() {
        encoder.row(&fields).unwrap();
    }
    let (mut assembler, mut file) = layout.begin().unwrap();
    if !encoder.is_empty() {
        file.extend(assembler.append(encoder.pack().unwrap()).unwrap());
    }
    file.extend(assembler.finish().unwrap());
    file
}

/// Returns the number of rows, and the number of those for which a condition holds.
async fn counts(connection: &mut PoolConnection<Postgres>, from: &str, differs: &str) -> (i64, i64) {
    let query = format!("select count(*), count(*) filter (where {differs}) from {from}");
    sqlx::query_as(AssertSqlSafe(query)).fetch_one(&mut **connection).await.unwrap()
}

#[tokio::test]
async fn copy_from_restores_every_value_of_a_csv() {
    let mut connection = values().await;
    for (kind, name) in TYPES {
        let csv = file(&mut connection, Format::Csv, kind, &format!("select id, v from of_{name}")).await;
        // The settings of the reading session make no difference.
        let restored = format!(
            "create table restored_{name} (id int8, v {name});
             set datestyle = 'sql, dmy';
             set timezone = 'Asia/Kolkata'"
        );
        connection.execute(AssertSqlSafe(restored)).await.unwrap();
        let into = format!("copy restored_{name} from stdin (format csv, header)");
        let mut copy = connection.copy_in_raw(&into).await.unwrap();
        copy.send(csv).await.unwrap();
        let copied = copy.finish().await.unwrap();

        let both = format!("of_{name} o full join restored_{name} r using (id)");
        // A json equals nothing, and some values that are equal are not the same: 0 and -0, 1.5 and 1.50.
        let differs = match kind {
            ColumnType::Json => "o.v::text is distinct from r.v::text",
            _ => "o.v is distinct from r.v or o.v::text is distinct from r.v::text",
        };
        assert_eq!(counts(&mut connection, &both, differs).await, (copied as i64, 0), "{name}");
    }
}

#[tokio::test]
async fn a_line_of_json_has_what_postgres_would_make_of_the_value() {
    let mut connection = values().await;
    // Postgres stores it, but doesn't take apart what it is in.
    connection.execute(r"delete from of_json where v::text like '%\\u0000%'").await.unwrap();
    for (kind, name) in TYPES {
        let ndjson = file(&mut connection, Format::Ndjson, kind, &format!("select id, v from of_{name}")).await;
        let ndjson = String::from_utf8(ndjson).unwrap();
        let lines: Vec<&str> = ndjson.strip_suffix('\n').unwrap().split('\n').collect();
        assert!(!ndjson.contains('\r'));
        connection.execute(AssertSqlSafe(format!("create table line_of_{name} (line json)"))).await.unwrap();
        let insert = format!("insert into line_of_{name} select unnest($1::text[])::json");
        sqlx::query(AssertSqlSafe(insert)).bind(&lines).execute(&mut *connection).await.unwrap();

        let both = format!("of_{name} o full join line_of_{name} on id = (line ->> 'id')::int8");
        let value = match kind {
            // A line has no line ends in it, and `->` leaves out what is around a value.
            ColumnType::Json => {
                r"(line -> 'v')::text is distinct from coalesce(btrim(translate(v::text, E'\r\n', '  ')), 'null')"
            }
            ColumnType::Jsonb => "(line -> 'v')::jsonb is distinct from coalesce(v, 'null')",
            _ => &format!("(line ->> 'v')::{name}::text is distinct from v::text"),
        };
        let differs =
            format!("{value} or json_typeof(line -> 'v') is distinct from coalesce(json_typeof(to_json(v)), 'null')");
        assert_eq!(counts(&mut connection, &both, &differs).await, (lines.len() as i64, 0), "{name}");
    }
}

#[cfg(feature = "parquet")]
mod in_parquet {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::Field;

    use super::*;

    /// The values that Parquet has a form for.
    fn representable(kind: ColumnType) -> &'static str {
        match kind {
            ColumnType::Timestamp | ColumnType::Timestamptz => "v is null or isfinite(v) and v < '294247-01-01'",
            ColumnType::Date => "v is null or isfinite(v)",
            ColumnType::Time => "v is null or v < '24:00'",
            _ => "true",
        }
    }

    fn text(field: &Field) -> Option<String> {
        Some(match field {
            Field::Null => return None,
            Field::Short(number) => number.to_string(),
            Field::Int(number) | Field::Date(number) => number.to_string(),
            Field::Long(number) | Field::TimeMicros(number) | Field::TimestampMicros(number) => number.to_string(),
            Field::Float(number) => format!("{number:?}"),
            Field::Double(number) => format!("{number:?}"),
            Field::Bool(flag) => flag.to_string(),
            Field::Str(text) => text.clone(),
            Field::Bytes(bytes) => bytes.data().iter().map(|byte| format!("{byte:02x}")).collect(),
            other => panic!("{other}"),
        })
    }

    /// Returns SQL for the value of `p`, a text of the file.
    fn meaning(kind: ColumnType, name: &str) -> String {
        let moment = "timestamp '1970-01-01' + p::int8 / 86400000000 * interval '1 day'
                      + p::int8 % 86400000000 * interval '1 microsecond'";
        match kind {
            ColumnType::Bytea => "decode(p, 'hex')".to_owned(),
            ColumnType::Date => "date '1970-01-01' + p::int4".to_owned(),
            ColumnType::Time => "time '00:00' + p::int8 * interval '1 microsecond'".to_owned(),
            ColumnType::Timestamp => moment.to_owned(),
            ColumnType::Timestamptz => format!("({moment}) at time zone 'UTC'"),
            _ => format!("p::{name}"),
        }
    }

    #[tokio::test]
    async fn parquet_holds_every_value_that_it_has_a_form_for() {
        let mut connection = values().await;
        for (kind, name) in TYPES {
            let query = format!("select id, v from of_{name} where {}", representable(kind));
            let file = file(&mut connection, Format::Parquet, kind, &query).await;
            let file = SerializedFileReader::new(Bytes::from(file)).unwrap();
            let rows = file.get_row_iter(None).unwrap().map(|row| row.unwrap().into_columns());
            let (ids, values): (Vec<_>, Vec<_>) = rows.map(|row| (text(&row[0].1), text(&row[1].1))).unzip();
            connection.execute(AssertSqlSafe(format!("create table read_{name} (id int8, p text)"))).await.unwrap();
            let insert =
                format!("insert into read_{name} select i::int8, p from unnest($1::text[], $2::text[]) as f (i, p)");
            sqlx::query(AssertSqlSafe(insert)).bind(&ids).bind(&values).execute(&mut *connection).await.unwrap();

            let both = format!("({query}) o full join read_{name} using (id)");
            let differs = format!("v::text is distinct from ({})::text", meaning(kind, name));
            assert_eq!(counts(&mut connection, &both, &differs).await, (ids.len() as i64, 0), "{name}");
        }
    }
}
