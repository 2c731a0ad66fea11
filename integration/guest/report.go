package guest

import (
	"encoding/json"
	"io"
)

// A report says on the control line how the program in the guest ended.
type report struct {
	Exit  int    // exit code; 128 and the signal if one ended it
	Error string // why the program could not run, or not end

	// The bytes that the guest wrote on the lines of the program's output.
	Out, Err int64
}

func (r report) writeTo(w io.Writer) {
	// If this fails the parent says that there was no report.
	_ = json.NewEncoder(w).Encode(r)
}

// sendReport sends what the guest reports, and closes the channel at the end.
func sendReport(reports chan<- report) func(io.Reader) {
	return func(r io.Reader) {
		defer close(reports)
		var last report
		if json.NewDecoder(r).Decode(&last) == nil {
			reports <- last
		}
	}
}
