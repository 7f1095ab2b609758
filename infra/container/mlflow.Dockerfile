# The MLflow server of infra/kubernetes: MLflow and what it needs for PostgreSQL and S3, in the lock's versions.
#   docker build -f infra/container/mlflow.Dockerfile -t fast-electra-mlflow:3.17.2 .
FROM python:3.11-slim
COPY requirements.lock /tmp/requirements.lock
# psycopg 3 and not psycopg2: it is what SQLAlchemy from 2.1 on takes for postgresql://, and pg_dump takes no other scheme.
# The flows never speak to the database themselves, so the lock has none.
RUN pip install --no-cache-dir --constraint /tmp/requirements.lock mlflow boto3 'psycopg[binary]==3.3.9' \
    && useradd --create-home --uid 10001 mlflow
USER 10001
WORKDIR /home/mlflow
# MLflow's job workers evaluate what language models say; nothing here asks them to, and they take 1.3 GB.
ENV MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false PYTHONUNBUFFERED=1
EXPOSE 5000
CMD ["mlflow", "server", "--host=0.0.0.0", "--port=5000"]
