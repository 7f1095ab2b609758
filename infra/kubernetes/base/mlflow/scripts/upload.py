"""A database dump to S3: `upload.py FILE`, to BACKUPS_ADDRESS (s3://BUCKET/PREFIX), named by the time (UTC)."""

import datetime
import os
import sys
from pathlib import Path

import boto3

SMALLEST = 1000  # bytes; pg_dump of an empty database is larger


def main() -> None:
    """Upload, and say where to; a dump that cannot be one is refused, so that the job fails where somebody looks."""
    dump = Path(sys.argv[1])
    size = dump.stat().st_size
    with dump.open("rb") as file:
        if size < SMALLEST or file.read(5) != b"PGDMP":
            raise SystemExit(f"{dump} ({size} bytes) is no dump of pg_dump --format=custom")
    bucket, _, prefix = os.environ["BACKUPS_ADDRESS"].removeprefix("s3://").rstrip("/").partition("/")
    now = datetime.datetime.now(datetime.UTC)
    key = "/".join(filter(None, (prefix, f"{now:%Y/%m/%Y-%m-%dT%H%M%SZ}.dump")))
    boto3.client("s3").upload_file(str(dump), bucket, key)
    print(f"{size} bytes to s3://{bucket}/{key}")


if __name__ == "__main__":
    main()
