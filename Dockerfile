# Stages: `runtime`, the service, and `test`, the suite with a Postgres to run it on. `docker build .` gives `runtime`.
#
# An image is what its digest says; the tag beside it is for people. `docker buildx imagetools inspect rust:1.95-bookworm` tells the
# tag's present one, for when it has got the distribution's fixes.

# The dependencies' list, and as much of a crate as cargo wants to see: what is compiled on top of this layer stays in the
# cache until the list changes.
FROM rust:1.95-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS manifest
ENV CARGO_INCREMENTAL=0
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
RUN mkdir -p benches src tests/suite \
    && touch src/lib.rs \
    && echo 'fn main() {}' | tee src/main.rs benches/encode.rs >tests/suite/main.rs

FROM manifest AS build
ENV CARGO_PROFILE_RELEASE_STRIP=debuginfo
RUN cargo build --release --locked
COPY .env.example ./
COPY migrations migrations
COPY src src
# What `--version` says of the commit, where these are given: its hash and its time, as 2026-11-22T10:20:30Z.
ARG REVISION
ARG CREATED
# Cargo goes by times, and a clone may be older than the layer above.
RUN touch src/lib.rs src/main.rs \
    && CDC_EXPORT_COMMIT="$(printf '%.7s %.10s' "$REVISION" "$CREATED")" cargo build --release --locked
COPY docker/cdc-export /out/bin/cdc-export
RUN chmod 755 /out/bin/cdc-export && install -D target/release/cdc-export /out/libexec/cdc-export

FROM debian:bookworm-slim@sha256:3783cc01769c7b2b1b83a5c5ad96c815348e28ed7da68e2e3687004faa906251 AS runtime
# For a DATABASE_URL with TLS.
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

FROM manifest AS test
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends pgbouncer postgresql \
    && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/* \
    && useradd --create-home tester \
    && chown -R tester /src
# Postgres doesn't run as root.
USER tester
ENV CARGO_HOME=/home/tester/.cargo
RUN cargo test --locked --no-run
COPY --chown=tester . .
RUN touch src/lib.rs src/main.rs tests/suite/main.rs && cargo test --locked --no-run
ENV CARGO_NET_OFFLINE=true
ENTRYPOINT ["cargo", "test", "--locked"]

# The last stage is the default. Builders without BuildKit make every stage on the way to the one that is asked for, hence
# `test` after `runtime`, and `target: runtime` in docker-compose.yml.
FROM runtime
