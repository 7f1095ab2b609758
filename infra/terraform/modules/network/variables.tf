variable "name" {
  description = "Prefix of names."
  type        = string
}

variable "cidr" {
  description = "Address range of the VPC, a /16."
  type        = string
}

variable "num_zones" {
  description = "Availability zones to spread over."
  type        = number
}
