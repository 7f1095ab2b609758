output "metaflow_config" {
  description = "Exactly the METAFLOW_* settings; `fast-electra metaflow-config` makes Metaflow's config file of them."
  value = {
    METAFLOW_DEFAULT_DATASTORE          = "s3"
    METAFLOW_DEFAULT_METADATA           = "local" # kept in the datastore; MLflow holds the lineage
    METAFLOW_DATASTORE_SYSROOT_S3       = "s3://${module.storage.buckets["data"]}/metaflow"
    METAFLOW_DATATOOLS_S3ROOT           = "s3://${module.storage.buckets["data"]}/metaflow/data"
    METAFLOW_CARD_S3ROOT                = "s3://${module.storage.buckets["data"]}/metaflow/mf.cards"
    METAFLOW_KUBERNETES_NAMESPACE       = local.namespace
    METAFLOW_DEFAULT_CONTAINER_IMAGE    = "${var.name}:cpu"
    METAFLOW_DEFAULT_CONTAINER_REGISTRY = split("/", module.storage.image_repositories["steps"])[0] # images of the profiles get it in front

    METAFLOW_KUBERNETES_SERVICE_ACCOUNT   = "fast-electra"
    METAFLOW_ARGO_WORKFLOWS_USE_SCHEDULES = "True" # Argo Workflows 4 knows only the list
    METAFLOW_ARGO_EVENTS_SERVICE_ACCOUNT  = "fast-electra-events"
    METAFLOW_ARGO_EVENTS_EVENT_BUS        = "default"
    METAFLOW_ARGO_EVENTS_EVENT_SOURCE     = "metaflow-webhook"
    METAFLOW_ARGO_EVENTS_EVENT            = "metaflow-event"
    METAFLOW_ARGO_EVENTS_SENSOR_NAMESPACE = local.namespace
    METAFLOW_ARGO_EVENTS_WEBHOOK_URL      = "http://metaflow-webhook-eventsource-svc.${local.namespace}.svc.cluster.local:12000/metaflow-event"
    METAFLOW_BATCH_JOB_QUEUE              = module.batch.job_queues["cpu"]
    METAFLOW_ECS_S3_ACCESS_IAM_ROLE       = module.batch.task_role_arn
    METAFLOW_SFN_IAM_ROLE                 = module.batch.step_functions_role_arn
    METAFLOW_SFN_DYNAMO_DB_TABLE          = module.batch.state_table
    METAFLOW_SFN_STATE_MACHINE_PREFIX     = var.name
    METAFLOW_EVENTS_SFN_ACCESS_IAM_ROLE   = module.batch.events_role_arn
  }
}

output "mlflow_config" {
  description = "Exactly the MLFLOW_* settings."
  value = {
    MLFLOW_TRACKING_URI                  = var.mlflow_tracking_uri
    MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD = "true" # large files go to S3 without passing through the server
    MLFLOW_DISABLE_TELEMETRY             = "true"
  }
}

output "kubernetes_settings" {
  description = "Lines for infra/kubernetes/overlays/aws/settings.env."
  value = join("\n", concat([for name, value in {
    AWS_REGION          = var.region
    CLUSTER_NAME        = module.cluster.name
    TASK_ROLE_ARN       = module.service_role["task"].arn
    MLFLOW_ROLE_ARN     = module.service_role["mlflow"].arn
    BACKUP_ROLE_ARN     = module.service_role["backup"].arn
    AUTOSCALER_ROLE_ARN = module.service_role["autoscaler"].arn
    MLFLOW_IMAGE        = "${module.storage.image_repositories["mlflow"]}:${var.mlflow_image_tag}"
    ARTIFACTS_ADDRESS   = "s3://${module.storage.buckets["artifacts"]}/mlflow"
    BACKUPS_ADDRESS     = "s3://${module.storage.buckets["backups"]}/mlflow"
  } : "${name}=${value}"], [""]))
}

output "cluster_name" {
  description = "For `aws eks update-kubeconfig --name`."
  value       = module.cluster.name
}

output "image_repositories" {
  description = "Where to push the images: steps, mlflow."
  value       = module.storage.image_repositories
}

output "data_bucket" {
  description = "Bucket for text and runs: --corpus s3://BUCKET/text, --store s3://BUCKET/store."
  value       = module.storage.buckets["data"]
}

output "database" {
  description = "MLflow's database: its host, and the name of the secret that holds the password (never the password)."
  value = {
    host      = module.tracking.database_host
    secret_id = module.tracking.database_secret_id
  }
}
