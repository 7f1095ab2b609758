variable "name" {
  description = "Prefix of names."
  type        = string
}

variable "vpc_id" {
  description = "VPC of the database."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets of the database, in two zones at least."
  type        = list(string)
}

variable "cluster_security_group_id" {
  description = "Security group that may connect."
  type        = string
}

variable "instance_class" {
  description = "RDS instance class."
  type        = string
}

variable "multi_az" {
  description = "Keep a standby in another zone."
  type        = bool
}

variable "password_version" {
  description = "Raise it to give the database a new password."
  type        = number
}

variable "protect_data" {
  description = "Refuse to destroy the database, and leave a last snapshot."
  type        = bool
}
