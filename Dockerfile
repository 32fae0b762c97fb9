# One image for every face: `lastseat api`, `lastseat worker` and the operator's verbs.
FROM python:3.13-slim

WORKDIR /srv/lastseat
COPY locks/run.txt locks/run.txt
RUN pip install --no-cache-dir --require-hashes -r locks/run.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
 && useradd --system --no-create-home --shell /usr/sbin/nologin lastseat

# Stores are named by LASTSEAT_REDIS_URL and LASTSEAT_POSTGRES_URL; nothing is written here.
USER lastseat
EXPOSE 8000
ENTRYPOINT ["lastseat"]
CMD ["api"]
