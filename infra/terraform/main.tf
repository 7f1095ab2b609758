# The cloud of Fast-ELECTRA: a cluster with GPUs that cost nothing while idle, buckets, MLflow's database, and AWS Batch with
# what Step Functions needs. README.md says what it costs; docs/cloud.md has every command in order.

module "network" {
  source = "./modules/network"

  name      = var.name
  cidr      = var.vpc_cidr
  num_zones = var.num_zones
}

module "cluster" {
  source = "./modules/cluster"

  name                = var.name
  kubernetes_version  = var.kubernetes_version
  subnet_ids          = module.network.private_subnet_ids
  admin_cidrs         = var.admin_cidrs
  cpu_instance_types  = var.cpu_instance_types
  cpu_max_nodes       = var.cpu_max_nodes
  gpu_instance_types  = var.gpu_instance_types
  gpu_max_nodes       = var.gpu_max_nodes
  node_disk_gb        = var.node_disk_gb
  gpu_node_disk_gb    = var.gpu_node_disk_gb
  user_principals     = var.user_principals
  deployer_principals = var.deployer_principals
}

module "storage" {
  source = "./modules/storage"

  name            = var.name
  noncurrent_days = var.noncurrent_days
  backup_days     = var.backup_days
  protect_data    = var.protect_data
}

module "tracking" {
  source = "./modules/tracking"

  name                      = var.name
  vpc_id                    = module.network.vpc_id
  subnet_ids                = module.network.private_subnet_ids
  cluster_security_group_id = module.cluster.security_group_id
  instance_class            = var.database_instance_class
  multi_az                  = var.database_multi_az
  password_version          = var.database_password_version
  protect_data              = var.protect_data
}

module "batch" {
  source = "./modules/batch"

  name               = var.name
  vpc_id             = module.network.vpc_id
  subnet_ids         = module.network.private_subnet_ids
  cpu_instance_types = var.cpu_instance_types
  gpu_instance_types = var.gpu_instance_types
  cpu_max_nodes      = var.cpu_max_nodes
  gpu_max_nodes      = var.gpu_max_nodes
  node_disk_gb       = var.node_disk_gb
  gpu_node_disk_gb   = var.gpu_node_disk_gb
  data_policy        = data.aws_iam_policy_document.data.json
}
