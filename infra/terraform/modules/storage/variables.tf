variable "name" {
  description = "Prefix of names."
  type        = string
}

variable "noncurrent_days" {
  description = "Days for which overwritten and deleted objects can be restored."
  type        = number
}

variable "backup_days" {
  description = "Days for which dumps of the database are kept."
  type        = number
}

variable "protect_data" {
  description = "Refuse to destroy what holds anything."
  type        = bool
}
