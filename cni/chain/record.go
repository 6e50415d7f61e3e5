// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"encoding/json"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/nodeagent/nodeagent/cni"
)

const (
	bucket            = "cni-chain"
	keyVersion        = "version"
	recordVersion     = "1"
	bucketAttachments = "attachments"
)

// record is written before the first plugin is asked and deleted after the
// last one has deleted.
type record struct {
	Request cni.Request     `json:"request"`
	Config  json.RawMessage `json:"config"`
}

// load makes the bucket if need be; it refuses a newer version.
func (c *Chain) load() error {
	err := c.deps.DB.Update(func(tx *bbolt.Tx) error {
		root, err := tx.CreateBucketIfNotExists([]byte(bucket))
		if err != nil {
			return err
		}
		if v := root.Get([]byte(keyVersion)); v == nil {
			if err := root.Put([]byte(keyVersion), []byte(recordVersion)); err != nil {
				return err
			}
		} else if string(v) != recordVersion {
			return fmt.Errorf("records have version %s, this program knows %s; it must not be older than the one that wrote them", v, recordVersion)
		}
		_, err = root.CreateBucketIfNotExists([]byte(bucketAttachments))
		return err
	})
	if err != nil {
		return fmt.Errorf("load attachments to foreign networks: %w", err)
	}
	return nil
}

func attachments(tx *bbolt.Tx) *bbolt.Bucket {
	return tx.Bucket([]byte(bucket)).Bucket([]byte(bucketAttachments))
}

func (c *Chain) put(r record) error {
	v, err := json.Marshal(r)
	if err == nil {
		err = c.deps.DB.Update(func(tx *bbolt.Tx) error { return attachments(tx).Put([]byte(r.Request.String()), v) })
	}
	if err != nil {
		return fmt.Errorf("record attachment: %w", err)
	}
	return nil
}

// get returns ErrUnknown if no foreign plugin had to do with the key.
func (c *Chain) get(k cni.Key) (r record, err error) {
	err = c.deps.DB.View(func(tx *bbolt.Tx) error {
		v := attachments(tx).Get([]byte(k.String()))
		if v == nil {
			return cni.ErrUnknown
		}
		return decode(k.String(), v, &r)
	})
	return r, err
}

func (c *Chain) delete(k cni.Key) error {
	err := c.deps.DB.Update(func(tx *bbolt.Tx) error { return attachments(tx).Delete([]byte(k.String())) })
	if err != nil {
		return fmt.Errorf("forget attachment %s: %w", k, err)
	}
	return nil
}

func (c *Chain) list() (out []record, err error) {
	err = c.deps.DB.View(func(tx *bbolt.Tx) error {
		return attachments(tx).ForEach(func(k, v []byte) error {
			var r record
			if err := decode(string(k), v, &r); err != nil {
				return err
			}
			out = append(out, r)
			return nil
		})
	})
	return out, err
}
