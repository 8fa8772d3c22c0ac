"""The version of headstart, in the one place that the package, its files and its build read."""

VERSION = "0.1.0"
