# Two stages: build the wheel, then install it beside the pinned dependencies. Debian-based, because lmdb has no wheel
# for musl. `kvnode serve` runs as uid 10001, keeps everything below /data, and is configured by KVNODE_… variables.

FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY kvnode ./kvnode
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:3.13-slim
ENV PYTHONUNBUFFERED=1
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /dist /dist
RUN python -m pip install --no-cache-dir --constraint /tmp/constraints.txt /dist/*.whl \
 && python -m compileall -q /usr/local/lib/python3.13/site-packages/kvnode \
 && rm -rf /dist /tmp/constraints.txt \
 && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin kvnode \
 && install -d -o 10001 -g 10001 -m 0700 /data
ENV KVNODE_NODE__DATA_DIR=/data/node
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 7401 7501 7501/udp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["kvnode", "health"]
ENTRYPOINT ["kvnode"]
CMD ["serve"]
