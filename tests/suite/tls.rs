//! TLS to Postgres: what each `sslmode` of `DATABASE_URL` asks of the server, and who may vouch for it.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use private_postgres::Server;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions, Executor, PgConnection};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::harness::{
    Start, connect_options, embedded_settings_with_cluster, ends, eventually, free_port, lacks, option_env,
    reachable_folder,
};

/// A Postgres on 127.0.0.1, with a certificate for that address alone. Two roles, both with the password `pass`:
/// `either`, and `strict`, who gets in with TLS only.
struct Postgres {
    folder: TempDir,
    port: u16,
    _server: Child,
}

async fn openssl(folder: &Path, arguments: &str) {
    let mut command = Command::new("openssl");
    command.args(arguments.split(' ')).env_clear().env("PATH", option_env("PATH").unwrap()).current_dir(folder);
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `{name}.crt` and `{name}.key`, who may vouch for others.
pub(crate) async fn authority(folder: &Path, name: &str) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(folder, &format!("req -x509 {key} -keyout {name}.key -out {name}.crt -days 2 -subj /CN={name}")).await;
}

/// `server.crt` and `server.key` for 127.0.0.1 and github.com, which `ca.crt` vouches for.
pub(crate) async fn certificates(folder: &Path) {
    authority(folder, "ca").await;
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(folder, &format!("req {key} -keyout server.key -out server.csr -subj /CN=server")).await;
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1,DNS:github.com").unwrap();
    let signed = "-CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names";
    openssl(folder, &format!("x509 -req -in server.csr -out server.crt {signed}")).await;
}

impl Postgres {
    async fn start() -> Postgres {
        let folder = reachable_folder();
        let path = folder.path();
        tokio::join!(certificates(path), authority(path, "other"));

        // The private server makes the data; it listens on no network, so its data is served by another one.
        let private = Server::start(&embedded_settings_with_cluster(&path.join("home")).await).await.unwrap();
        let mut superuser = connect_options(private.socket_folder()).connect().await.unwrap();
        for role in ["either", "strict"] {
            // Postgres 13 would store MD5.
            let scram = "set password_encryption = 'scram-sha-256'";
            let role = format!("{scram}; create role {role} superuser login password 'pass'");
            superuser.execute(sqlx::AssertSqlSafe(role)).await.unwrap();
        }
        let data = path.join("home/postgres");
        let started_with = std::fs::read_to_string(data.join("postmaster.opts")).unwrap();
        drop(superuser);
        private.stop().await;

        let owner = std::fs::metadata(&data).unwrap();
        for file in ["server.crt", "server.key"] {
            std::fs::copy(path.join(file), data.join(file)).unwrap();
            std::fs::set_permissions(data.join(file), PermissionsExt::from_mode(0o600)).unwrap();
            chown(data.join(file), Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let rules = "hostssl all strict 127.0.0.1/32 scram-sha-256\nhost all either 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(data.join("pg_hba.conf"), rules).unwrap();
        let port = free_port();
        let mut command = std::process::Command::new(PathBuf::from(started_with.split(' ').next().unwrap()));
        command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", "unix_socket_directories=", "-c", "fsync=off"]).current_dir(&data);
        if nix::unistd::geteuid().is_root() {
            command.uid(owner.uid()).gid(owner.gid());
        }
        let mut command = Command::from(command);
        let log = std::fs::File::create(path.join("log")).unwrap();
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true).spawn().unwrap();
        let postgres = Postgres { folder, port, _server: server };
        postgres.alter("ssl = on").await;
        postgres
    }

    async fn connect(&self) -> Option<PgConnection> {
        let options =
            PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(self.port).ssl_mode(PgSslMode::Prefer);
        options.username("either").password("pass").database("cdc_export").connect().await.ok()
    }

    /// Sets a setting, and waits until new connections have it.
    async fn alter(&self, setting: &str) {
        let mut conn = eventually("it listens", || self.connect()).await;
        let alter = format!("alter system set {setting}");
        conn.execute(sqlx::AssertSqlSafe(alter)).await.unwrap();
        conn.execute("select pg_reload_conf()").await.unwrap();
        let (name, value) = setting.split_once(" = ").unwrap();
        let shown = || async {
            let mut conn = self.connect().await?;
            let shown = format!("select current_setting('{name}') = '{value}'");
            sqlx::query_scalar::<_, bool>(sqlx::AssertSqlSafe(shown)).fetch_one(&mut conn).await.ok()?.then_some(())
        };
        eventually(setting, shown).await;
    }

    fn url(&self, role: &str, host: &str, rest: &str) -> String {
        format!("postgres://{role}:pass@{host}:{}/cdc_export{rest}", self.port)
    }

    /// `?sslmode=…&sslrootcert=…` with a certificate of this folder.
    fn vouched(&self, mode: &str, by: &str) -> String {
        format!("?sslmode={mode}&sslrootcert={}", self.folder.path().join(by).display())
    }
}

/// Reaches the database, or says in one line why not.
async fn reaches(start: Start) -> Result<(), String> {
    let (code, errors) = start.arguments(&["migrate"]).until_it_ends().await;
    if code == 0 {
        assert_eq!(errors, "");
        return Ok(());
    }
    let line = errors.strip_suffix('\n').unwrap();
    assert!(code == 1 && line.starts_with("cdc-export: DATABASE_URL: ") && !line.contains('\n'), "{errors}");
    assert!(!line.contains("pass"), "{line}");
    Err(line.to_owned())
}

fn on(url: String) -> Start {
    Start::plain().with("DATABASE_URL", url)
}

#[tokio::test]
async fn each_sslmode_asks_what_it_says() {
    if lacks("openssl", "openssl") {
        return;
    }
    let postgres = Postgres::start().await;
    let url = |role: &str, host: &str, rest: &str| postgres.url(role, host, rest);

    // Every connection of a service: its API's, its workers', the listener.
    for rest in ["?sslmode=require", ""] {
        let service = on(url("strict", "127.0.0.1", rest)).with("SEED_ROWS", 100).service().await;
        assert_eq!(service.export("full", "a").await.1.rows.len(), 98);
        let mut conn = postgres.connect().await.unwrap();
        let connections: (i64, i64) = sqlx::query_as(
            "select count(*), count(*) filter (where s.ssl and s.version like 'TLSv1._')
             from pg_stat_activity a join pg_stat_ssl s using (pid) where a.application_name like 'cdc-export%'",
        )
        .fetch_one(&mut conn)
        .await
        .unwrap();
        assert!(connections.0 >= 4 && connections.0 == connections.1, "{rest}: {connections:?}");
    }
    let plain = reaches(on(url("strict", "127.0.0.1", "?sslmode=disable"))).await.unwrap_err();
    assert!(plain.contains("no encryption") || plain.contains("SSL off"), "{plain}");
    reaches(on(url("either", "127.0.0.1", "?sslmode=disable"))).await.unwrap();

    let (right, wrong) = (postgres.vouched("verify-full", "ca.crt"), postgres.vouched("verify-full", "other.crt"));
    reaches(on(url("strict", "127.0.0.1", &right))).await.unwrap();
    let line = reaches(on(url("strict", "127.0.0.1", &wrong))).await.unwrap_err();
    assert!(line.contains("UnknownIssuer") && line.contains("sslrootcert"), "{line}");
    let line = reaches(on(url("strict", "localhost", &right))).await.unwrap_err();
    assert!(line.contains("not valid for name") && line.contains("localhost"), "{line}");
    let file = |name: &str| postgres.folder.path().join(name).display().to_string();
    let full = url("strict", "127.0.0.1", "?sslmode=verify-full");
    reaches(on(full.clone()).with("PGSSLROOTCERT", file("ca.crt"))).await.unwrap();
    reaches(on(full.clone()).with("PGSSLROOTCERT", file("other.crt"))).await.unwrap_err();
    let vouched = url("strict", "127.0.0.1", &right);
    reaches(on(vouched.clone()).with("PGSSLROOTCERT", file("other.crt"))).await.unwrap();
    // The file's authorities are added to the platform's.
    reaches(on(url("strict", "127.0.0.1", &wrong)).with("SSL_CERT_FILE", file("ca.crt"))).await.unwrap();
    // Every process of the service, not the command alone.
    let service = on(vouched).with("SEED_ROWS", 100).with("SSL_CERT_FILE", file("other.crt")).service().await;
    assert_eq!(service.export("full", "vouched").await.1.rows.len(), 98);
    service.stop().await;

    // `verify-ca` checks no name, so it goes by a file of the platform's authorities.
    let any_name = url("strict", "localhost", "?sslmode=verify-ca");
    reaches(on(any_name.clone()).with("SSL_CERT_FILE", file("ca.crt"))).await.unwrap();
    let line = reaches(on(any_name).with("SSL_CERT_FILE", file("other.crt"))).await.unwrap_err();
    assert!(line.contains("certificate"), "{line}");

    // The platform's authorities vouch where none is named.
    reaches(on(full.clone())).await.unwrap_err();
    reaches(on(full.clone()).with("SSL_CERT_FILE", postgres.folder.path().join("ca.crt").display())).await.unwrap();
    reaches(on(full).with("SSL_CERT_FILE", postgres.folder.path().join("other.crt").display())).await.unwrap_err();

    // A server without TLS, or somebody who pretends to be one.
    postgres.alter("ssl = off").await;
    for rest in ["?sslmode=require".to_owned(), right] {
        let line = reaches(on(url("either", "127.0.0.1", &rest))).await.unwrap_err();
        assert!(line.contains("does not support TLS"), "{line}");
    }
    reaches(on(url("either", "127.0.0.1", ""))).await.unwrap();
}

/// The one line with which a start is refused.
async fn refused(start: Start) -> String {
    let (code, errors) = start.arguments(&["migrate"]).until_it_ends().await;
    assert!(code == 2 && errors.lines().count() == 1, "{code} {errors}");
    assert!(!errors.contains("secret") && !errors.contains("postgres://s"), "{errors}");
    errors
}

#[tokio::test]
async fn a_parameter_that_would_be_ignored_stops_the_start() {
    // Nobody listens there: what is refused is refused before anybody is asked.
    let url = |rest: &str| format!("postgres://somebody:secret@127.0.0.1:1/db?{rest}");
    for (rest, parameter) in [
        ("channel_binding=require", "channel_binding"),
        ("sslmode=require&channel_binding=require", "channel_binding"),
        ("gssencmode=require", "gssencmode"),
        ("target_session_attrs=read-write", "target_session_attrs"),
        ("require_auth=scram-sha-256", "require_auth"),
        ("requirepeer=postgres", "requirepeer"),
        ("sslcrl=secret.crl", "sslcrl"),
        ("sslcrldir=secret", "sslcrldir"),
        ("sslpassword=secret", "sslpassword"),
        ("sslcertmode=require", "sslcertmode"),
        ("sslnegotiation=direct", "sslnegotiation"),
        ("ssl_min_protocol_version=TLSv1.3", "ssl_min_protocol_version"),
        ("ssl_max_protocol_version=TLSv1.2", "ssl_max_protocol_version"),
        ("ssl=true", "ssl"),
        ("SSLMODE=verify-full", "SSLMODE"),
        ("ssl_mode=verify-full", "ssl_mode"),
        ("passfile=secret", "passfile"),
        ("service=secret", "service"),
        ("connect_timeout=0", "connect_timeout"),
        ("connect_timeout=soon", "connect_timeout"),
        ("keepalives=1", "keepalives"),
        ("keepalives_idle=30", "keepalives_idle"),
        ("keepalives_interval=30", "keepalives_interval"),
        ("keepalives_count=3", "keepalives_count"),
        ("tcp_user_timeout=1000", "tcp_user_timeout"),
        ("load_balance_hosts=random", "load_balance_hosts"),
        ("replication=database", "replication"),
        ("schema=secret", "schema"),
        ("options[search_path", "options"),
        // Others than the file's authorities are trusted, too.
        ("sslrootcert=secret.crt", "sslrootcert"),
        ("sslmode=prefer&sslrootcert=secret.crt", "sslrootcert"),
        ("sslmode=disable&sslrootcert=secret.crt", "sslrootcert"),
        ("sslmode=require&sslrootcert=secret.crt", "sslrootcert"),
        ("sslmode=verify-ca&sslrootcert=secret.crt", "sslrootcert"),
        ("sslmode=verify-full&sslrootcert=system", "sslrootcert"),
        // The certificate would be compared with the address.
        ("sslmode=verify-full&hostaddr=127.0.0.1", "hostaddr"),
    ] {
        let line = refused(on(url(rest))).await;
        let named = format!("cdc-export: DATABASE_URL: the parameter {parameter} ");
        assert!(line.starts_with(&named), "{rest}: {line}");
    }
    for (rest, word) in [("sslmode=secret", "sslmode"), ("port=secret", "port"), ("hostaddr=secret", "hostaddr")] {
        let line = refused(on(url(rest))).await;
        assert!(line.starts_with("cdc-export: DATABASE_URL: ") && line.contains(word), "{rest}: {line}");
    }
    for (name, value) in [("sslmode", "verifyfull"), ("ssl-mode", "VERIFY")] {
        let line = refused(on(url(&format!("{name}={value}")))).await;
        let told =
            format!("the parameter {name} is not one of disable, allow, prefer, require, verify-ca and verify-full");
        assert!(line.contains(&told) && !line.contains(value), "{line}");
    }
    // Text after a `&` or a `#` of a password may belong to the password.
    for odd in ["db?password=x&secr%20et/=1", "db?sslmode=require#secret", "db#sslmode=verify-full"] {
        let line = refused(on(format!("postgres://somebody@127.0.0.1:1/{odd}"))).await;
        assert!(line.starts_with("cdc-export: DATABASE_URL: ") && !line.contains("secr"), "{odd}: {line}");
    }
    // The same holds for the environment, which libpq reads too: for unsupported and for unreadable values.
    for (variable, value) in [
        ("PGSSLMODE", "verify-fulll"),
        ("PGSSLROOTCERT", "system"),
        ("PGCONNECT_TIMEOUT", "secret"),
        ("PGPORT", "secret"),
        ("PGCHANNELBINDING", "require"),
        ("PGGSSENCMODE", "require"),
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGREQUIREPEER", "postgres"),
        ("PGREQUIRESSL", "1"),
        ("PGSSLCRL", "secret.crl"),
        ("PGSSLCRLDIR", "secret"),
        ("PGSSLMINPROTOCOLVERSION", "TLSv1.3"),
    ] {
        let line = refused(on(url("")).with(variable, value)).await;
        assert!(line.starts_with(&format!("cdc-export: {variable}: ")), "{line}");
    }
    for mode in ["require", "verify-ca"] {
        let line = refused(on(url(&format!("sslmode={mode}"))).with("PGSSLROOTCERT", "secret.crt")).await;
        assert!(line.starts_with("cdc-export: PGSSLROOTCERT: needs sslmode=verify-full"), "{line}");
    }
    let line = refused(on(url("sslmode=verify-ca"))).await;
    assert!(line.starts_with("cdc-export: DATABASE_URL: with sslmode=verify-ca, "), "{line}");
    assert!(line.contains("SSL_CERT_FILE"), "{line}");
    // The URL's own parameter hides the variable of the same setting.
    let said = reaches(on(url("sslmode=require")).with("PGSSLMODE", "verify-fulll")).await.unwrap_err();
    assert!(said.contains("refused"), "nobody listens: {said}");
    // A parameter that asks only for the usual behaviour is no reason to refuse a start.
    let same = "sslmode=disable&channel_binding=prefer&gssencmode=disable&target_session_attrs=any&ssl_min_protocol_version=TLSv1.2\
                &statement-cache-capacity=50&options=-c%20geqo%3Doff&options[jit]=off";
    let start = on(url(same)).with("PGGSSENCMODE", "disable").with("PGCONNECT_TIMEOUT", "10");
    let line = reaches(start).await.unwrap_err();
    assert!(line.contains("refused"), "nobody listens: {line}");
}

#[tokio::test]
async fn a_connection_is_waited_for_as_long_as_the_address_says() {
    // Postgres would answer; this one lets everybody connect, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = |rest: &str| format!("postgres://a@127.0.0.1:{}/db?{rest}", silent.local_addr().unwrap().port());
    for start in [on(url("connect_timeout=1")), on(url("")).with("PGCONNECT_TIMEOUT", "1")] {
        let line = reaches(start).await.unwrap_err();
        assert!(line.contains("no answer within 1 seconds"), "{line}");
    }
}

/// RDS has an authority of its own, and buckets, webhooks and services have public ones.
#[tokio::test]
async fn the_authorities_of_postgres_are_for_postgres_alone() {
    if lacks("openssl", "openssl") {
        return;
    }
    let (of_postgres, of_others) = (reachable_folder(), reachable_folder());
    tokio::join!(authority(of_postgres.path(), "other"), certificates(of_others.path()));
    let server = crate::download::redirecting("http://127.0.0.1:1", of_others.path());
    let root = of_postgres.path().join("other.crt");
    let to = format!("postgres://a:pass@127.0.0.1:1/db?sslmode=verify-full&sslrootcert={}", root.display());
    let apply = ["apply", "--to", &to, "--consumer", "a", "--all-datasets", "--server", &server];
    let authority = of_others.path().join("ca.crt");
    ends(Start::plain().with("SSL_CERT_FILE", authority.display()).arguments(&apply).output().await, 1, "answers 302");
    let folder = reachable_folder();
    std::fs::copy(&authority, folder.path().join("some.pem")).unwrap();
    ends(
        Start::plain().with("SSL_CERT_DIR", folder.path().display()).arguments(&apply).output().await,
        1,
        "answers 302",
    );
    ends(Start::plain().with("SSL_CERT_FILE", root.display()).arguments(&apply).output().await, 1, "UnknownIssuer");
}
