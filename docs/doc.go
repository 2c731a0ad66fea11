// Package docs has the pages, and no code: its tests follow the links between them.
package docs
