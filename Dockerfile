# Stages: `runtime`, the service, and `test`, the suite with a Postgres to run it on. `docker build .` gives `runtime`.
#
# An image is what its digest says; the tag beside it is for people. `docker buildx imagetools inspect rust:1.95-bookworm` shows the tag's
# current digest, for when the image has got the distribution's fixes.

FROM rust:1.95-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS rust
ENV CARGO_INCREMENTAL=0
WORKDIR /src

# `tests/dockerfile.py` checks that the copied files are all that cargo needs. A change of another page of the docs, or of docker-compose.yml, compiles nothing.
FROM rust AS build
COPY .env.example Cargo.toml Cargo.lock build.rs ./
COPY benches benches
COPY crates crates
COPY docs/SYMPTOMS.md docs/SYMPTOMS.md
COPY migrations migrations
COPY tests tests
COPY src src
ARG FEATURES=full
# The commit that `--version` names, if these are given: its hash and its time, as 2026-11-22T10:20:30Z.
ARG REVISION
ARG CREATED
RUN CDC_EXPORT_COMMIT="$(printf '%.7s %.10s' "$REVISION" "$CREATED")" \
    cargo build --release --locked --bin cdc-export --features "$FEATURES"
COPY docker/cdc-export /out/bin/cdc-export
RUN chmod 755 /out/bin/cdc-export && install -D target/release/cdc-export /out/libexec/cdc-export

FROM debian:bookworm-slim@sha256:3783cc01769c7b2b1b83a5c5ad96c815348e28ed7da68e2e3687004faa906251 AS runtime
# For TLS: databases, buckets, webhooks and brokers.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out /usr/local
ENV OUTPUT_DIR=/output
RUN install -d -o 65532 -g 65532 /output
EXPOSE 8080
# As root (`--user 0`) the entry point becomes the owner of the output folder.
USER 65532:65532
ENTRYPOINT ["cdc-export"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="cdc-export" \
    org.opencontainers.image.description="Hands a Postgres table's rows to downstream consumers as files" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.created="$CREATED" \
    org.opencontainers.image.source="$SOURCE" \
    org.opencontainers.image.base.name="debian:bookworm-slim"

FROM rust AS test
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends pgbouncer postgresql \
    && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/* \
    && useradd --create-home tester \
    && chown tester /src
# Postgres doesn't run as root.
USER tester
ENV CARGO_HOME=/home/tester/.cargo
COPY --chown=tester . .
RUN cargo test --locked --no-run --features full
ENV CARGO_NET_OFFLINE=true
ENTRYPOINT ["cargo", "test", "--locked", "--features", "full"]

# The last stage is the default. Builders without BuildKit make every stage on the way to the one that is asked for, hence
# `test` after `runtime`, and `target: runtime` in docker-compose.yml.
FROM runtime
