variable "name" {
  description = "Name of the cluster and prefix of names."
  type        = string
}

variable "kubernetes_version" {
  description = "Kubernetes version, such as 1.35."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets of the nodes."
  type        = list(string)
}

variable "admin_cidrs" {
  description = "Addresses that may reach the Kubernetes API from outside the VPC; empty: none."
  type        = list(string)
}

variable "cpu_instance_types" {
  description = "Types of the steady nodes."
  type        = list(string)
}

variable "cpu_max_nodes" {
  description = "Most CPU nodes at a time."
  type        = number
}

variable "gpu_instance_types" {
  description = "Types that the spot GPU group may take."
  type        = list(string)
}

variable "gpu_max_nodes" {
  description = "Most GPU nodes at a time."
  type        = number
}

variable "node_disk_gb" {
  description = "Root volume of each CPU node, GB."
  type        = number
}

variable "gpu_node_disk_gb" {
  description = "Root volume of each GPU node, GB."
  type        = number
}

variable "user_principals" {
  description = "ARNs of IAM principals in the Kubernetes group fast-electra-users."
  type        = list(string)
}

variable "deployer_principals" {
  description = "ARNs of IAM principals in the Kubernetes groups fast-electra-users and fast-electra-deployers."
  type        = list(string)
}
