# Every image for both architectures:  docker buildx bake [--push] [TARGET…]
#
# With wheels in images/wheels (scripts/images fetches them):  PIP_NO_INDEX=1 docker buildx bake

variable "VERSION" {
  default = "0.1.0"
}

# Before the images' names, with a slash at its end: "registry.example/"
variable "REGISTRY" {
  default = ""
}

variable "PYTHON_BASE" {
  default = "python:3.11-slim-bookworm"
}

variable "BROKER_BASE" {
  default = "eclipse-mosquitto:2.0.22"
}

variable "PIP_NO_INDEX" {
  default = ""
}

# An index of torch's CPU builds, without which an amd64 planner or stage-torch cannot be built:
# the default index has only a build with CUDA, and the lock does not allow that one.
variable "TORCH_INDEX_URL" {
  default = ""
}

group "default" {
  targets = ["stage", "planner", "client", "broker"]
}

target "_all" {
  context   = "."
  platforms = ["linux/arm64", "linux/amd64"]
  args = {
    VERSION = VERSION
  }
}

target "_python" {
  inherits = ["_all"]
  args = {
    BASE_IMAGE   = PYTHON_BASE
    PIP_NO_INDEX = PIP_NO_INDEX
  }
}

target "stage" {
  inherits   = ["_python"]
  dockerfile = "Dockerfile.stage"
  tags       = ["${REGISTRY}shardline/stage:${VERSION}"]
}

target "stage-torch" {
  inherits   = ["_python"]
  dockerfile = "Dockerfile.stage"
  tags       = ["${REGISTRY}shardline/stage-torch:${VERSION}"]
  args = {
    ENGINE          = "torch"
    TORCH_INDEX_URL = TORCH_INDEX_URL
  }
}

target "planner" {
  inherits   = ["_python"]
  dockerfile = "images/planner/Dockerfile"
  tags       = ["${REGISTRY}shardline/planner:${VERSION}"]
  args = {
    TORCH_INDEX_URL = TORCH_INDEX_URL
  }
}

target "client" {
  inherits   = ["_python"]
  dockerfile = "images/client/Dockerfile"
  tags       = ["${REGISTRY}shardline/client:${VERSION}"]
}

target "broker" {
  inherits   = ["_all"]
  dockerfile = "images/broker/Dockerfile"
  tags       = ["${REGISTRY}shardline/broker:${VERSION}"]
  args = {
    BASE_IMAGE = BROKER_BASE
  }
}
