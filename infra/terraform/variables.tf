variable "name" {
  description = "Prefix of every resource's name; two installations in one account need two names."
  type        = string
  default     = "fast-electra"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name)) && !strcontains(var.name, "--")
    error_message = "name must be 3 to 20 characters: lower-case letters, digits and single hyphens, beginning with a letter and not ending with a hyphen (it becomes part of the names of buckets and of the database)."
  }
}

variable "region" {
  description = "AWS region, such as eu-central-1. GPU instances and their spot prices differ by region."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region must look like eu-central-1."
  }
}

variable "tags" {
  description = "Tags on every resource, besides Project and ManagedBy."
  type        = map(string)
  default     = {}
}

variable "protect_data" {
  description = "Refuse to destroy the database and buckets that hold anything. Set to false, and apply, before `terraform destroy`."
  type        = bool
  default     = true
}

# Network

variable "vpc_cidr" {
  description = "Address range of the VPC, a /16 that no network you connect to it uses."
  type        = string
  default     = "10.42.0.0/16"

  validation {
    condition     = can(regex("^(10\\.[0-9]{1,3}|172\\.(1[6-9]|2[0-9]|3[01])|192\\.168)\\.0\\.0/16$", var.vpc_cidr)) && can(cidrnetmask(var.vpc_cidr))
    error_message = "vpc_cidr must be a private IPv4 range with a /16 mask, such as 10.42.0.0/16: in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16, as MLflow's NetworkPolicy lets it reach databases in no others."
  }
}

variable "num_zones" {
  description = "Availability zones to spread over. More zones, more spot GPUs to choose from; EKS and RDS need 2."
  type        = number
  default     = 3

  validation {
    condition     = contains([2, 3, 4], var.num_zones)
    error_message = "num_zones must be 2, 3 or 4."
  }
}

variable "admin_cidrs" {
  description = "Addresses that may reach the Kubernetes API from outside the VPC, such as [\"203.0.113.7/32\"]. Empty: none, the API is private."
  type        = list(string)

  validation {
    condition     = alltrue([for cidr in var.admin_cidrs : can(cidrnetmask(cidr)) && tonumber(split("/", cidr)[1]) >= 16])
    error_message = "each of admin_cidrs must be an IPv4 range of /16 or narrower; the whole internet (0.0.0.0/0) is refused."
  }
}

# Cluster

variable "kubernetes_version" {
  description = "EKS's Kubernetes version; the cluster autoscaler's image in infra/kubernetes must be of the same minor version."
  type        = string
  default     = "1.35"

  validation {
    condition     = can(regex("^1\\.(3[3-9]|[4-9][0-9])$", var.kubernetes_version))
    error_message = "kubernetes_version must be 1.33 or newer, such as 1.35."
  }
}

variable "cpu_instance_types" {
  description = "Types for CPU nodes (MLflow, Argo, tokenizing), x86-64; all of the first one's size."
  type        = list(string)
  default     = ["m6i.xlarge", "m7i.xlarge", "m5.xlarge"]

  validation {
    condition     = length(var.cpu_instance_types) > 0
    error_message = "cpu_instance_types must name at least one instance type."
  }
}

variable "cpu_max_nodes" {
  description = "Most CPU nodes of each kind (on demand, spot) at a time; 2 on demand always run, as a zone or a node may fail."
  type        = number
  default     = 6

  validation {
    condition     = var.cpu_max_nodes >= 2 && var.cpu_max_nodes <= 100
    error_message = "cpu_max_nodes must be between 2 and 100."
  }
}

variable "gpu_instance_types" {
  description = "Types for GPU nodes, x86-64 with NVIDIA GPUs, all of the first one's size; several, or spot finds none. The profiles of infra/profiles must fit."
  type        = list(string)
  default     = ["g5.8xlarge", "g6.8xlarge"]

  validation {
    condition     = length(var.gpu_instance_types) > 0 && alltrue([for type in var.gpu_instance_types : can(regex("^(g[4-9]|p[3-9])[a-z0-9-]*\\.", type))])
    error_message = "gpu_instance_types must name at least one type of the families g4 and up or p3 and up, such as g5.xlarge."
  }
}

variable "gpu_max_nodes" {
  description = "Most GPU nodes of each kind (spot, on demand) at a time; none run while nothing asks for a GPU. The bound of what a mistake can cost."
  type        = number
  default     = 4

  validation {
    condition     = var.gpu_max_nodes >= 1 && var.gpu_max_nodes <= 64
    error_message = "gpu_max_nodes must be between 1 and 64."
  }
}

variable "node_disk_gb" {
  description = "Root volume of each CPU node, GB: images, token shards, dumps on their way to S3."
  type        = number
  default     = 100

  validation {
    condition     = var.node_disk_gb >= 50 && var.node_disk_gb <= 2000
    error_message = "node_disk_gb must be between 50 and 2000."
  }
}

variable "gpu_node_disk_gb" {
  description = "Root volume of each GPU node, GB: images (about 10 with CUDA), token shards, checkpoints on their way to S3. The profiles' `disk` must fit; a node offers 0.88 of it."
  type        = number
  default     = 300

  validation {
    condition     = var.gpu_node_disk_gb >= 50 && var.gpu_node_disk_gb <= 2000
    error_message = "gpu_node_disk_gb must be between 50 and 2000."
  }
}

variable "user_principals" {
  description = "ARNs of IAM roles or users who may start flows on the cluster (Kubernetes group fast-electra-users)."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.user_principals : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(role|user)/", arn))])
    error_message = "each of user_principals must be the ARN of an IAM role or user."
  }
}

variable "deployer_principals" {
  description = "ARNs of IAM roles or users who may besides deploy schedules (Kubernetes group fast-electra-deployers)."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.deployer_principals : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(role|user)/", arn))])
    error_message = "each of deployer_principals must be the ARN of an IAM role or user."
  }
}

# What runs there

variable "mlflow_image_tag" {
  description = "Tag of the MLflow server's image in ECR. Tags there cannot be overwritten."
  type        = string
  default     = "3.17.2"

  validation {
    condition     = can(regex("^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$", var.mlflow_image_tag)) && var.mlflow_image_tag != "latest"
    error_message = "mlflow_image_tag must be a tag that stays put; `latest` and characters that a tag cannot have are refused."
  }
}

variable "mlflow_tracking_uri" {
  description = "Where steps find the MLflow server. The default answers inside the cluster only; AWS Batch needs the internal load balancer's address (docs/cloud.md)."
  type        = string
  default     = "http://mlflow.mlflow.svc.cluster.local:5000"

  validation {
    condition     = can(regex("^https?://[^/@]+$", var.mlflow_tracking_uri))
    error_message = "mlflow_tracking_uri must be http:// or https:// with a host and a port, without a path and without credentials."
  }
}

# Data

variable "noncurrent_days" {
  description = "Days for which overwritten and deleted objects can be restored."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1 && var.noncurrent_days <= 3650
    error_message = "noncurrent_days must be between 1 and 3650."
  }
}

variable "backup_days" {
  description = "Days for which nightly dumps of MLflow's database are kept in S3, besides RDS's own snapshots."
  type        = number
  default     = 35

  validation {
    condition     = var.backup_days >= 1 && var.backup_days <= 3650
    error_message = "backup_days must be between 1 and 3650."
  }
}

variable "database_instance_class" {
  description = "RDS instance class of MLflow's database."
  type        = string
  default     = "db.t4g.small"

  validation {
    condition     = startswith(var.database_instance_class, "db.")
    error_message = "database_instance_class must begin with db., such as db.t4g.small."
  }
}

variable "database_multi_az" {
  description = "Keep a standby database in another zone; doubles its price."
  type        = bool
  default     = false
}

variable "database_password_version" {
  description = "Raise by one and apply to give the database a new password (then renew the Kubernetes Secret, docs/cloud.md)."
  type        = number
  default     = 1

  validation {
    condition     = var.database_password_version >= 1 && floor(var.database_password_version) == var.database_password_version
    error_message = "database_password_version must be a whole number of at least 1."
  }
}
