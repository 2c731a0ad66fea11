package guest

import (
	"encoding/json"
	"io"
)

// A report says on the control line how the program in the guest ended.
type report struct {
	Exit  int    // exit code; 128 and the signal if one ended it
	Error string // why the program could not run, or not end
}

func (r report) writeTo(w io.Writer) {
	// If this fails the parent says that there was no report.
	_ = json.NewEncoder(w).Encode(r)
}
