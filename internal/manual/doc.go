// Package manual writes the manual pages and the sample configuration from what the program is made of: its commands, its default
// settings, and the table of settings in docs/configuration.md. So they cannot say anything else than those do.
package manual
