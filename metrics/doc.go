// Package metrics tells Prometheus what a Lamina does and how it is: its calls, which are counted as they come, and its Status,
// which is asked for at each scrape.
//
// A scrape costs one Status, which walks nothing. Scrapes at once share one. A Status that takes too long, because a disk or a
// pool does not answer, is left to itself: until it returns no other is asked for, and scrapes get the values of the last one
// that succeeded, with lamina_status_success 0.
package metrics
