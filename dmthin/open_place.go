package dmthin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/lamina-snapshotter/lamina/dmthin/internal/dm"
)

// openPlace opens and locks the place of a configuration, and makes nothing. The caller closes place and control.
func openPlace(ctx context.Context, c Config) (_ *Backend, uuid string, err error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, "", err
	}
	control, err := dm.Open()
	if err != nil {
		return nil, "", err
	}
	b := &Backend{config: c, control: control, place: c.place(control)}
	uuid, err = b.place.owner(ctx)
	switch {
	case err != nil:
	case uuid == "":
		err = fmt.Errorf("there is no pool yet: %w", fs.ErrNotExist)
	case uuid != c.Store:
		err = fmt.Errorf("the pool belongs to the store %s, and this is %s", uuid, c.Store)
	}
	if err != nil {
		return nil, "", errors.Join(err, b.place.close(), control.Close())
	}
	return b, uuid, nil
}
