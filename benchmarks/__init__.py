"""Measurements of this service, under the settings that its server makes for the libraries."""

from convolver.core.environment import prepare

prepare(threads=2)
