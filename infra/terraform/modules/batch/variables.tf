variable "name" {
  description = "Prefix of names, and of the state machines that Metaflow makes."
  type        = string
}

variable "vpc_id" {
  description = "VPC of the instances."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets of the instances."
  type        = list(string)
}

variable "cpu_instance_types" {
  description = "Types of the CPU queue."
  type        = list(string)
}

variable "gpu_instance_types" {
  description = "Types of the GPU queue."
  type        = list(string)
}

variable "cpu_max_nodes" {
  description = "Bound of the CPU queue, in instances of 4 vCPUs."
  type        = number
}

variable "gpu_max_nodes" {
  description = "Bound of the GPU queue, in instances of 32 vCPUs."
  type        = number
}

variable "node_disk_gb" {
  description = "Root volume of each CPU instance, GB."
  type        = number
}

variable "gpu_node_disk_gb" {
  description = "Root volume of each GPU instance, GB."
  type        = number
}

variable "data_policy" {
  description = "What tasks may do with the data bucket: a policy document in JSON."
  type        = string
}
