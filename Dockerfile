# Isthmus, linked statically, in an image that holds nothing else: no shell, no libraries, no CA bundle (a gateway trusts the
# anchors it is given, never the public ones), no user but a number.
#
#   docker build --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" -t isthmus .
#
# Kubernetes probes /live and /ready on the admin port and the probe port; so there is no HEALTHCHECK.

ARG BUILDER=rust:1.95-bookworm
ARG RUNTIME=scratch

FROM ${BUILDER} AS build
WORKDIR /src
# A target of its own keeps the flags below away from build scripts and procedural macros, which must stay dynamic.
ARG TARGET=x86_64-unknown-linux-gnu
ENV CARGO_BUILD_TARGET=${TARGET} \
    CARGO_INCREMENTAL=0 \
    CARGO_PROFILE_RELEASE_STRIP=symbols \
    RUSTFLAGS="-C target-feature=+crt-static"

# The dependencies, as a layer that only a change of a manifest or of the lock builds again: the manifests with empty sources.
COPY Cargo.toml Cargo.lock ./
COPY proxy/Cargo.toml proxy/
COPY probe/Cargo.toml probe/
COPY tests/Cargo.toml tests/
COPY benches/Cargo.toml benches/
RUN mkdir -p proxy/src probe/src \
    && echo 'fn main() {}' > proxy/src/main.rs \
    && touch proxy/src/lib.rs probe/src/lib.rs \
    && for room in tests benches; do \
         sed -n 's/^path = "\(.*\)"$/\1/p' "$room/Cargo.toml" | while read -r file; do \
           mkdir -p "$room/$(dirname "$file")" && touch "$room/$file"; \
         done; \
       done \
    && cargo build --release --locked --package isthmus

# The sources. Their times are older than those of the empty ones, so these are made to look new.
COPY proxy proxy
COPY probe probe
ARG REVISION=""
RUN find proxy probe -name '*.rs' -exec touch {} + \
    && if [ -n "$REVISION" ]; then export ISTHMUS_COMMIT="$REVISION"; fi \
    && cargo build --release --locked --package isthmus \
    && mkdir /out && cp "target/$CARGO_BUILD_TARGET/release/isthmus" /out/isthmus

FROM ${RUNTIME}
ARG VERSION=0.1.0
ARG REVISION=""
# No time of build: the same sources make the same image.
LABEL org.opencontainers.image.title="isthmus" \
      org.opencontainers.image.description="A multicluster gateway" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/isthmus /isthmus
# The allocator is jemalloc, whose options are read from _RJEM_MALLOC_CONF (the plain MALLOC_CONF is another library's), such as
# `narenas:4` where a pod has few processors of many, or `prof:false,stats_print:true` to see what it did at the end.
USER 65532:65532
# mc-gateway and mc-probe. The admin port, 4191, listens on loopback and is nobody else's business.
EXPOSE 4143 4181
STOPSIGNAL SIGTERM
ENTRYPOINT ["/isthmus"]
CMD ["run", "--config", "/etc/isthmus/isthmus.yaml"]
